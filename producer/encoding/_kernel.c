/* Owns the Python face of the encoder: programs, encoding of a batch, Kafka record framing, checksums.
 *
 * Every loop runs without the interpreter lock. Errors come back as
 * `_kernel.Failure(failure, node, row, size, in_key)`.
 */
#define PY_SSIZE_T_CLEAN
#ifdef LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "_avro.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel needs a little-endian machine; the numpy path is used instead"
#endif

#define PROGRAM "producer.program"

static PyObject *Failure;
static PyTypeObject *BufferType;

/* --- memory handed to Python without a copy ---------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    uint8_t *base;
    Py_ssize_t size;
} Buffer;

static int buffer_get(PyObject *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, self, ((Buffer *)self)->base, ((Buffer *)self)->size, 1, flags);
}

static Py_ssize_t buffer_length(PyObject *self) { return ((Buffer *)self)->size; }

static void buffer_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    free(((Buffer *)self)->base);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyType_Slot buffer_slots[] = {
    {Py_tp_doc, "Read-only bytes that the kernel wrote."},
    {Py_bf_getbuffer, buffer_get},
    {Py_sq_length, buffer_length},
    {Py_tp_dealloc, buffer_free},
    {0, NULL}};
static PyType_Spec buffer_spec = {
    "producer.encoding._kernel.Buffer", sizeof(Buffer), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, buffer_slots};

/* Takes `base` over, also where it fails. */
static PyObject *new_buffer(uint8_t *base, size_t size, size_t cap)
{
    if (cap - size > size / 4 + 4096) {
        uint8_t *less = realloc(base, size ? size : 1);
        base = less ? less : base;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(BufferType, Py_tp_alloc);
    Buffer *self = (Buffer *)allocate(BufferType, 0);
    if (!self) {
        free(base);
        return NULL;
    }
    self->base = base;
    self->size = (Py_ssize_t)size;
    return (PyObject *)self;
}

/* --- programs ---------------------------------------------------------------------------------------------------- */

static void program_free(PyObject *capsule)
{
    Program *program = PyCapsule_GetPointer(capsule, PROGRAM);
    if (program) {
        free(program->nodes);
        free(program->blob);
        free(program);
    }
}

static PyObject *program(PyObject *self, PyObject *args)
{
    Py_buffer words, blob;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*", &words, &blob))
        return NULL;
    PyObject *result = NULL;
    Program *g = calloc(1, sizeof(Program));
    if (g) {
        g->n_nodes = words.len / (8 * NODE_WORDS);
        g->blob_size = blob.len;
        g->nodes = calloc((size_t)g->n_nodes + 1, sizeof(Node));
        g->blob = malloc((size_t)blob.len + 1);
    }
    if (!g || !g->nodes || !g->blob) {
        PyErr_NoMemory();
    } else {
        memcpy(g->blob, blob.buf, (size_t)blob.len);
        for (int64_t k = 0; k < g->n_nodes; k++) {
            int64_t w[NODE_WORDS];
            memcpy(w, (uint8_t *)words.buf + k * 8 * NODE_WORDS, sizeof w);
            Node *n = &g->nodes[k];
            n->op = (int32_t)w[0];
            n->layout = (int32_t)w[1];
            n->column = (int32_t)w[2];
            n->n_children = (int32_t)w[3];
            n->subtree = (int32_t)w[4];
            n->value_branch = (int32_t)w[5];
            n->null_branch = (int32_t)w[6];
            n->a = w[7];
            n->b = w[8];
            n->c = w[9];
            n->d = w[10];
        }
        if (!program_check(g))
            PyErr_SetString(PyExc_ValueError, "not an encoding program");
        else
            result = PyCapsule_New(g, PROGRAM, program_free);
    }
    if (!result && g) {
        free(g->nodes);
        free(g->blob);
        free(g);
    }
    PyBuffer_Release(&words);
    PyBuffer_Release(&blob);
    return result;
}

static PyObject *raise_fault(Fault bad)
{
    if (bad.failure == FAIL_MEMORY)
        return PyErr_NoMemory();
    PyObject *value = Py_BuildValue("(iLLLi)", bad.failure, (long long)bad.node, (long long)bad.row, (long long)bad.size, bad.in_key);
    if (value) {
        PyErr_SetObject(Failure, value);
        Py_DECREF(value);
    }
    return NULL;
}

/* --- encode ------------------------------------------------------------------------------------------------------ */

PyDoc_STRVAR(encode_doc,
"encode(program, arrow_array, rows, prefix, offsets, hint) -> Buffer\n\n"
"Writes each row behind `prefix`; `offsets` is a writable buffer of rows + 1 int64. `hint`: bytes expected in all.");

static PyObject *encode(PyObject *self, PyObject *args)
{
    PyObject *program_capsule, *array_capsule, *result = NULL;
    Py_ssize_t rows, hint;
    Py_buffer prefix, offsets;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOny*w*n", &program_capsule, &array_capsule, &rows, &prefix, &offsets, &hint))
        return NULL;
    const Program *g = PyCapsule_GetPointer(program_capsule, PROGRAM);
    const struct ArrowArray *array = g ? PyCapsule_GetPointer(array_capsule, "arrow_array") : NULL;
    if (!array)
        goto done;
    if (rows < 0 || offsets.len / 8 <= rows) {
        PyErr_SetString(PyExc_ValueError, "offsets too short");
        goto done;
    }
    Out out = {NULL, 0, 0};
    Run run = {NULL, NULL, &out, FAIL_NONE, 0};
    int64_t row = 0;
    size_t used = 0;
    Py_BEGIN_ALLOW_THREADS
    if (run_bind(&run, g, array, rows)) {
        out.cap = (hint > 0 ? (size_t)hint : 0) + out.room + (size_t)prefix.len + 64;
        uint8_t *p = out.base = malloc(out.cap);
        if (!p)
            run.failure = FAIL_MEMORY;
        for (; p && row < rows; row++) {
            int64_t start = p - out.base;
            memcpy((uint8_t *)offsets.buf + 8 * row, &start, 8);
            if (!(p = out_reserve(&out, p, (size_t)prefix.len))) {
                run.failure = FAIL_MEMORY;
                break;
            }
            memcpy(p, prefix.buf, (size_t)prefix.len);
            if (!(p = run_row(&run, row, p + prefix.len)))
                break;
        }
        if (p) {
            int64_t end = p - out.base;
            memcpy((uint8_t *)offsets.buf + 8 * rows, &end, 8);
            used = (size_t)end;
        }
    }
    run_free(&run);
    Py_END_ALLOW_THREADS
    if (run.failure) {
        free(out.base);
        raise_fault((Fault){run.failure, 0, run.failed_node, row, 0});
    } else {
        result = new_buffer(out.base, used, out.cap);
    }
done:
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&offsets);
    return result;
}

/* --- frame ------------------------------------------------------------------------------------------------------- */

static PyObject *block_list(Blocks *blocks)
{
    PyObject *list = PyList_New((Py_ssize_t)blocks->count);
    for (size_t k = 0; k < blocks->count; k++) {
        Block *b = &blocks->items[k];
        PyObject *data = list ? new_buffer(b->base, b->size, b->cap) : NULL;
        if (list)
            b->base = NULL; /* new_buffer() took it over */
        PyObject *item = data ? Py_BuildValue("(iLN)", (int)b->partition, (long long)b->count, data) : NULL;
        if (!item || PyList_SetItem(list, (Py_ssize_t)k, item) < 0) {
            Py_XDECREF(list);
            list = NULL;
        }
    }
    return list;
}

PyDoc_STRVAR(frame_doc,
"frame(key_program, key_array, value_program, value_array, rows, key_prefix, value_prefix, headers, partitions,\n"
"      partition, max_block_bytes, hint) -> [(partition, count, Buffer)]\n\n"
"Kafka v2 records (the body of a record batch, not compressed). A program of None is a null key or value. `headers`:\n"
"the count and the headers, encoded. Without a key all go to `partition`. `hint`: bytes expected in a partition.\n"
"A Failure's fifth value is 1 where the key failed.");

static PyObject *frame(PyObject *self, PyObject *args)
{
    PyObject *key_program, *key_array, *value_program, *value_array, *result = NULL;
    Py_ssize_t rows, max_block, hint;
    int partitions, partition;
    Py_buffer key_prefix, value_prefix, headers;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOny*y*y*iinn", &key_program, &key_array, &value_program, &value_array, &rows, &key_prefix,
                          &value_prefix, &headers, &partitions, &partition, &max_block, &hint))
        return NULL;
    const Program *kg = NULL, *vg = NULL;
    const struct ArrowArray *ka = NULL, *va = NULL;
    Fault bad = {0, 0, 0, 0, 0};
    Out scratch = {NULL, 0, 0};
    Run key_run = {NULL, NULL, &scratch, FAIL_NONE, 0}, value_run = key_run;
    Blocks closed = {NULL, 0, 0};
    Block *open = NULL;
    if (key_program != Py_None &&
        (!(kg = PyCapsule_GetPointer(key_program, PROGRAM)) || !(ka = PyCapsule_GetPointer(key_array, "arrow_array"))))
        goto done;
    if (value_program != Py_None &&
        (!(vg = PyCapsule_GetPointer(value_program, PROGRAM)) || !(va = PyCapsule_GetPointer(value_array, "arrow_array"))))
        goto done;
    if (rows < 0 || partitions < 1 || partition < 0 || partition >= partitions || max_block < 1) {
        PyErr_SetString(PyExc_ValueError, "rows, partitions or max_block_bytes out of range");
        goto done;
    }
    Framing f = {key_prefix.buf, value_prefix.buf, headers.buf, (size_t)key_prefix.len, (size_t)value_prefix.len,
                 (size_t)headers.len, (size_t)max_block, hint > 0 ? (size_t)hint : 0, partitions, partition, rows};
    int ok = 0;
    Py_BEGIN_ALLOW_THREADS
    open = calloc((size_t)partitions, sizeof(Block));
    scratch.cap = 4096;
    scratch.base = malloc(scratch.cap);
    if (!open || !scratch.base) {
        bad = (Fault){.failure = FAIL_MEMORY};
    } else if (kg && !run_bind(&key_run, kg, ka, rows)) {
        bad = (Fault){.failure = key_run.failure, .in_key = 1, .node = key_run.failed_node};
    } else if (vg && !run_bind(&value_run, vg, va, rows)) {
        bad = (Fault){.failure = value_run.failure, .node = value_run.failed_node};
    } else {
        for (int k = 0; k < partitions; k++)
            open[k].partition = k;
        ok = frame_rows(&f, kg ? &key_run : NULL, vg ? &value_run : NULL, &scratch, open, &closed, &bad);
    }
    run_free(&key_run);
    run_free(&value_run);
    free(scratch.base);
    Py_END_ALLOW_THREADS
    if (ok) {
        result = block_list(&closed);
    } else {
        raise_fault(bad);
    }
    for (size_t k = 0; k < closed.count; k++)
        free(closed.items[k].base);
    free(closed.items);
    for (int k = 0; open && k < partitions; k++)
        free(open[k].base);
    free(open);
done:
    PyBuffer_Release(&key_prefix);
    PyBuffer_Release(&value_prefix);
    PyBuffer_Release(&headers);
    return result;
}

/* --- checksums --------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(murmur2_doc, "murmur2(data, offsets, hashes): the hash of each slice, into a writable buffer of int32.");

static PyObject *murmur2_py(PyObject *self, PyObject *args)
{
    Py_buffer data, offsets, hashes;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*", &data, &offsets, &hashes))
        return NULL;
    int64_t count = hashes.len / 4;
    int ok = offsets.len / 8 > count;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t k = 0; ok && k < count; k++) {
        int64_t span[2];
        memcpy(span, (uint8_t *)offsets.buf + 8 * k, 16);
        ok = span[0] >= 0 && span[1] >= span[0] && span[1] <= data.len;
        if (ok) {
            uint32_t h = murmur2((uint8_t *)data.buf + span[0], (size_t)(span[1] - span[0]));
            memcpy((uint8_t *)hashes.buf + 4 * k, &h, 4);
        }
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&hashes);
    if (!ok) {
        PyErr_SetString(PyExc_ValueError, "offsets outside the data");
        return NULL;
    }
    Py_RETURN_NONE;
}

enum { CRC_ALONE = 1 << 20 };

PyDoc_STRVAR(crc32c_doc, "crc32c(data, value=0, hardware=True) -> int");

static PyObject *crc32c_py(PyObject *self, PyObject *args)
{
    Py_buffer data;
    unsigned int value = 0;
    int hardware = 1;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*|Ip", &data, &value, &hardware))
        return NULL;
    /* The lock is given away only where the work is longer than getting it back may take. */
    PyThreadState *state = data.len > CRC_ALONE ? PyEval_SaveThread() : NULL;
    uint32_t result = (hardware ? crc32c : crc32c_portable)(value, data.buf, (size_t)data.len);
    if (state)
        PyEval_RestoreThread(state);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(result);
}

static PyMethodDef methods[] = {
    {"program", program, METH_VARARGS, "program(words, blob) -> capsule"},
    {"encode", encode, METH_VARARGS, encode_doc},
    {"frame", frame, METH_VARARGS, frame_doc},
    {"murmur2", murmur2_py, METH_VARARGS, murmur2_doc},
    {"crc32c", crc32c_py, METH_VARARGS, crc32c_doc},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernel", "Avro and Kafka records straight from Arrow buffers.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void)
{
    PyObject *m = PyModule_Create(&module);
    if (!m)
        return NULL;
    crc32c_init();
    BufferType = (PyTypeObject *)PyType_FromModuleAndSpec(m, &buffer_spec, NULL);
    Failure = PyErr_NewException("producer.encoding._kernel.Failure", NULL, NULL);
    if (!BufferType || !Failure || PyModule_AddObjectRef(m, "Failure", Failure) < 0 ||
        PyModule_AddObjectRef(m, "Buffer", (PyObject *)BufferType) < 0) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
