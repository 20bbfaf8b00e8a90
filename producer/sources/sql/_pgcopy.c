/* Owns the step from PostgreSQL's binary COPY to Arrow: rows as libpq gives them, written into columns.
 *
 * Format: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS-BINARY, the values as the types'
 * send functions write them. libpq is not linked: its two functions come as addresses, since it is found at run time.
 * The loop runs without the interpreter lock. A value without a form in its column's type ends it: see `read`.
 */
#define PY_SSIZE_T_CLEAN
#ifdef LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "../../encoding/_avro.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a little-endian machine is needed; the driver's own reader is used instead"
#endif

enum { WIRE_BOOL, WIRE_2, WIRE_4, WIRE_8, WIRE_DATE, WIRE_TIMESTAMP, WIRE_TIME, WIRE_BYTES, WIRE_JSONB, WIRE_DECIMAL,
       WIRE_DIGITS, WIRE_KINDS };
enum { READ_ALL, READ_CUT, READ_REFUSED, READ_BROKEN, READ_NO_MEMORY, READ_GOES_ON };

static const int widths[WIRE_KINDS] = {0, 2, 4, 8, 4, 8, 8, -1, -1, 16, -1}; /* -1: behind int32 offsets */

typedef struct {
    int64_t kind, precision, scale;
    uint8_t *valid, *data; /* data: of the fixed width, bits, or the bytes that `offsets` divide */
    int32_t *offsets;
    size_t used, cap; /* of data, in bytes, where it is of variable length */
    int64_t nulls;
} Column;

typedef struct {
    Column *columns;
    int64_t n, rows, room; /* room: rows that there is place for */
    size_t bytes;
} Table;

static const char SIGNATURE[11] = "PGCOPY\n\377\r\n\0";
#define FIRST_ROWS 512
#define EPOCH_DAYS 10957                /* from 1970 to 2000 */
#define EPOCH_MICROS 946684800000000LL
#define DAY_MICROS 86400000000LL

static inline uint16_t get2(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return __builtin_bswap16(v); }
static inline uint32_t get4(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline uint64_t get8(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v); }

/* --- room ---------------------------------------------------------------------------------------------------------- */

static int grown(void *place, size_t size)
{
    void **at = place, *more = realloc(*at, size ? size : 1);
    if (more)
        *at = more;
    return more != NULL;
}

static int more_rows(Table *t, int64_t room)
{
    for (int64_t k = 0; k < t->n; k++) {
        Column *c = &t->columns[k];
        size_t bits = (size_t)(room + 7) / 8, had = (size_t)(t->room + 7) / 8;
        if (!grown(&c->valid, bits))
            return 0;
        memset(c->valid + had, 0, bits - had);
        int width = widths[c->kind];
        if (width > 0) {
            if (!grown(&c->data, (size_t)room * (size_t)width))
                return 0;
        } else if (width == 0) {
            if (!grown(&c->data, bits))
                return 0;
            memset(c->data + had, 0, bits - had);
        } else {
            if (!grown(&c->offsets, ((size_t)room + 1) * sizeof(int32_t)))
                return 0;
            if (!t->room)
                c->offsets[0] = 0;
        }
    }
    t->room = room;
    return 1;
}

static uint8_t *more_bytes(Column *c, size_t size)
{
    if (!c->data || c->cap - c->used < size) {
        size_t cap = c->cap + c->cap / 2 + size + 4096;
        if (!grown(&c->data, cap))
            return NULL;
        c->cap = cap;
    }
    return c->data + c->used;
}

/* --- numeric: digits to the base of 10,000, `weight` is the first one's power, `scale` digits are shown ------------- */

typedef struct {
    int digits, weight, sign, scale;
    const uint8_t *at;
} Numeric;

static int numeric(Numeric *n, const uint8_t *p, int32_t size)
{
    if (size < 8)
        return 0;
    *n = (Numeric){get2(p), (int16_t)get2(p + 2), get2(p + 4), get2(p + 6), p + 8};
    return size == 8 + 2 * n->digits && (n->sign == 0 || n->sign == 0x4000); /* others: NaN and the infinities */
}

static int decimal(const Column *c, const uint8_t *p, int32_t size, uint8_t *to)
{
    Numeric n;
    if (!numeric(&n, p, size))
        return 0;
    __int128 value = 0;
    for (int k = 0; k < n.digits; k++)
        if (__builtin_mul_overflow(value, (__int128)10000, &value) ||
            __builtin_add_overflow(value, (__int128)get2(n.at + 2 * k), &value))
            return 0;
    int64_t power = c->scale + 4 * (int64_t)(n.weight + 1 - n.digits);
    for (; value && power > 0; power--)
        if (__builtin_mul_overflow(value, (__int128)10, &value))
            return 0;
    for (; value && power < 0; power++) {
        if (value % 10)
            return 0;
        value /= 10;
    }
    __int128 limit = 1;
    for (int64_t k = 0; k < c->precision; k++)
        limit *= 10;
    if (value >= limit)
        return 0;
    value = n.sign ? -value : value;
    memcpy(to, &value, 16);
    return 1;
}

/* As PostgreSQL shows it. */
static int digits(Column *c, const uint8_t *p, int32_t size)
{
    Numeric n;
    if (!numeric(&n, p, size))
        return READ_REFUSED;
    int whole = n.weight < 0 ? 1 : 4 * (n.weight + 1);
    uint8_t *start = more_bytes(c, (size_t)whole + (size_t)n.scale + 8), *to = start;
    if (!start)
        return READ_NO_MEMORY;
    if (n.sign)
        *to++ = '-';
    uint8_t *first = to;
    for (int k = 0; k <= n.weight; k++) {
        int d = k < n.digits ? get2(n.at + 2 * k) : 0;
        for (int unit = 1000; unit; unit /= 10)
            if (d / unit % 10 || to > first)
                *to++ = (uint8_t)('0' + d / unit % 10);
    }
    if (to == first)
        *to++ = '0';
    if (n.scale)
        *to++ = '.';
    for (int k = 0; k < n.scale; k++) {
        int place = n.weight + 1 + k / 4, d = place >= 0 && place < n.digits ? get2(n.at + 2 * place) : 0;
        static const int units[4] = {1000, 100, 10, 1};
        *to++ = (uint8_t)('0' + d / units[k % 4] % 10);
    }
    c->used += (size_t)(to - start);
    return READ_GOES_ON;
}

/* --- values -------------------------------------------------------------------------------------------------------- */

static int value(Column *c, int64_t row, const uint8_t *p, int32_t size)
{
    int width = widths[c->kind];
    uint8_t *to = width > 0 ? c->data + (size_t)row * (size_t)width : NULL;
    if (width > 0 && c->kind != WIRE_DECIMAL && size != width)
        return READ_REFUSED;
    switch (c->kind) {
    case WIRE_BOOL:
        if (size != 1)
            return READ_REFUSED;
        c->data[row / 8] |= (uint8_t)((p[0] != 0) << (row % 8));
        break;
    case WIRE_2: {
        uint16_t v = get2(p);
        memcpy(to, &v, 2);
        break;
    }
    case WIRE_4: {
        uint32_t v = get4(p);
        memcpy(to, &v, 4);
        break;
    }
    case WIRE_8: {
        uint64_t v = get8(p);
        memcpy(to, &v, 8);
        break;
    }
    case WIRE_DATE: {
        int32_t v = (int32_t)get4(p);
        if (v == INT32_MIN || v == INT32_MAX || __builtin_add_overflow(v, EPOCH_DAYS, &v))
            return READ_REFUSED;
        memcpy(to, &v, 4);
        break;
    }
    case WIRE_TIMESTAMP: {
        int64_t v = (int64_t)get8(p);
        if (v == INT64_MIN || v == INT64_MAX || __builtin_add_overflow(v, EPOCH_MICROS, &v))
            return READ_REFUSED;
        memcpy(to, &v, 8);
        break;
    }
    case WIRE_TIME: {
        int64_t v = (int64_t)get8(p);
        if (v >= DAY_MICROS)
            return READ_REFUSED;
        memcpy(to, &v, 8);
        break;
    }
    case WIRE_JSONB: /* a version, and the text */
        if (size < 1 || p[0] != 1)
            return READ_REFUSED;
        p++, size--; /* fall through */
    case WIRE_BYTES: {
        uint8_t *place = more_bytes(c, (size_t)size);
        if (!place)
            return READ_NO_MEMORY;
        memcpy(place, p, (size_t)size);
        c->used += (size_t)size;
        break;
    }
    case WIRE_DECIMAL:
        if (!decimal(c, p, size, to))
            return READ_REFUSED;
        break;
    default: {
        int status = digits(c, p, size);
        if (status != READ_GOES_ON)
            return status;
    }
    }
    c->valid[row / 8] |= (uint8_t)(1 << (row % 8));
    return READ_GOES_ON;
}

static int row(Table *t, const uint8_t **at, const uint8_t *end)
{
    const uint8_t *p = *at;
    if (t->rows == t->room && !more_rows(t, 2 * t->room))
        return READ_NO_MEMORY;
    for (int64_t k = 0; k < t->n; k++) {
        Column *c = &t->columns[k];
        if (end - p < 4)
            return READ_REFUSED;
        int32_t size = (int32_t)get4(p);
        p += 4;
        if (size >= 0) {
            if (end - p < size)
                return READ_REFUSED;
            int status = value(c, t->rows, p, size);
            if (status != READ_GOES_ON)
                return status;
            p += size;
        } else {
            c->nulls++;
            if (widths[c->kind] > 0)
                memset(c->data + (size_t)t->rows * (size_t)widths[c->kind], 0, (size_t)widths[c->kind]);
        }
        if (c->offsets) {
            if (c->used > INT32_MAX)
                return READ_REFUSED;
            c->offsets[t->rows + 1] = (int32_t)c->used;
        }
    }
    t->rows++;
    t->bytes += (size_t)(p - *at);
    *at = p;
    return READ_GOES_ON;
}

typedef int (*GetCopyData)(void *, char **, int);
typedef void (*FreeMem)(void *);

/* Every message holds whole rows, the first one the signature before them. */
static int rows(Table *t, GetCopyData get, FreeMem release, void *connection, size_t max_bytes)
{
    for (int begun = 0, status = READ_GOES_ON;; begun = 1) {
        char *message = NULL;
        int size = get(connection, &message, 0);
        if (size < 0)
            return READ_BROKEN; /* before the trailer: the server says why */
        const uint8_t *p = (const uint8_t *)message, *end = p + size;
        if (!begun) {
            if (size < 19 || memcmp(p, SIGNATURE, sizeof SIGNATURE) || get4(p + 11) || get4(p + 15))
                status = READ_REFUSED;
            p += 19;
        }
        while (status == READ_GOES_ON && p < end) {
            int fields = end - p < 2 ? 0 : (int16_t)get2(p);
            p += 2;
            if (fields == -1)
                status = READ_ALL;
            else if (fields != t->n)
                status = READ_REFUSED;
            else
                status = row(t, &p, end);
        }
        release(message);
        if (status == READ_GOES_ON && t->bytes >= max_bytes && t->rows > 1)
            status = READ_CUT;
        if (status != READ_GOES_ON)
            return status;
    }
}

/* --- Arrow's C data interface: https://arrow.apache.org/docs/format/CDataInterface.html ---------------------------- */

static void free_column(struct ArrowArray *array)
{
    for (int64_t k = 0; k < array->n_buffers; k++)
        free((void *)array->buffers[k]);
    free(array->buffers);
    array->release = NULL;
}

static void free_table(struct ArrowArray *array)
{
    for (int64_t k = 0; k < array->n_children; k++) {
        if (array->children[k] && array->children[k]->release)
            array->children[k]->release(array->children[k]);
        free(array->children[k]);
    }
    free(array->children);
    free(array->buffers);
    array->release = NULL;
}

/* Hands a column's memory over to `array`. */
static int give_column(Column *c, int64_t count, struct ArrowArray *array)
{
    int variable = widths[c->kind] < 0;
    const void **buffers = calloc(3, sizeof(void *));
    if (!buffers || (variable && !more_bytes(c, 1))) {
        free(buffers);
        return 0;
    }
    if (c->nulls)
        buffers[0] = c->valid;
    else
        free(c->valid);
    buffers[1] = variable ? (void *)c->offsets : c->data;
    buffers[2] = variable ? c->data : NULL;
    *array = (struct ArrowArray){.length = count, .null_count = c->nulls, .n_buffers = variable ? 3 : 2,
                                 .buffers = buffers, .release = free_column};
    c->valid = c->data = NULL;
    c->offsets = NULL;
    return 1;
}

static int give_table(Table *t, struct ArrowArray *array)
{
    *array = (struct ArrowArray){.length = t->rows, .n_buffers = 1, .n_children = t->n, .release = free_table};
    array->buffers = calloc(1, sizeof(void *));
    array->children = calloc((size_t)t->n + 1, sizeof(struct ArrowArray *));
    int ok = array->buffers && array->children;
    if (!array->children)
        array->n_children = 0;
    for (int64_t k = 0; ok && k < t->n; k++)
        ok = (array->children[k] = calloc(1, sizeof(struct ArrowArray))) && give_column(&t->columns[k], t->rows, array->children[k]);
    return ok;
}

static void free_capsule(PyObject *capsule)
{
    struct ArrowArray *array = PyCapsule_GetPointer(capsule, "arrow_array");
    if (array) {
        if (array->release)
            array->release(array);
        free(array);
    }
}

/* --- Python -------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(read_doc,
"read(get_copy_data, free_mem, connection, columns, max_bytes) -> (status, arrow_array)\n\n"
"Reads a COPY that has begun. `columns`: kind, precision and scale of each, as int64.\n"
"Status 0: all was read; 1: more than `max_bytes` (and two rows) are there, and the rest is still to come; 2: a value\n"
"has no form, or the bytes are none of this format; 3: the connection or the server failed. The array (None with 2\n"
"and 3) is the rows as a struct, in Arrow's C data interface.");

static PyObject *read_py(PyObject *self, PyObject *args)
{
    unsigned long long get, release, connection;
    Py_buffer spec;
    Py_ssize_t max_bytes;
    (void)self;
    if (!PyArg_ParseTuple(args, "KKKy*n", &get, &release, &connection, &spec, &max_bytes))
        return NULL;
    Table t = {NULL, (int64_t)(spec.len / 24), 0, 0, 0};
    struct ArrowArray *array = NULL;
    PyObject *result = NULL;
    int status = READ_NO_MEMORY, known = 1;
    t.columns = calloc((size_t)t.n + 1, sizeof(Column));
    for (int64_t k = 0; t.columns && k < t.n; k++) {
        memcpy(&t.columns[k].kind, (uint8_t *)spec.buf + 24 * k, 24);
        const Column *c = &t.columns[k];
        known = known && c->kind >= 0 && c->kind < WIRE_KINDS && c->precision >= 0 && c->precision <= 38;
    }
    PyBuffer_Release(&spec);
    if (!known || max_bytes < 0) {
        PyErr_SetString(PyExc_ValueError, "not a form of a result");
        free(t.columns);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    if (t.columns && more_rows(&t, FIRST_ROWS))
        status = rows(&t, (GetCopyData)(uintptr_t)get, (FreeMem)(uintptr_t)release, (void *)(uintptr_t)connection, (size_t)max_bytes);
    if (status == READ_ALL || status == READ_CUT) {
        array = calloc(1, sizeof *array);
        if (!array || !give_table(&t, array))
            status = READ_NO_MEMORY;
    }
    Py_END_ALLOW_THREADS
    if (status == READ_NO_MEMORY) {
        PyErr_NoMemory();
    } else if (status == READ_ALL || status == READ_CUT) {
        PyObject *capsule = PyCapsule_New(array, "arrow_array", free_capsule);
        if (capsule) {
            array = NULL;
            result = Py_BuildValue("(iN)", status, capsule);
        }
    } else {
        result = Py_BuildValue("(iO)", status, Py_None);
    }
    if (array) {
        if (array->release)
            array->release(array);
        free(array);
    }
    for (int64_t k = 0; t.columns && k < t.n; k++) {
        free(t.columns[k].valid);
        free(t.columns[k].data);
        free(t.columns[k].offsets);
    }
    free(t.columns);
    return result;
}

PyDoc_STRVAR(skip_doc, "skip(get_copy_data, free_mem, connection): reads what is left of a COPY, and drops it.");

static PyObject *skip_py(PyObject *self, PyObject *args)
{
    unsigned long long get, release, connection;
    (void)self;
    if (!PyArg_ParseTuple(args, "KKK", &get, &release, &connection))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    char *message = NULL;
    while (((GetCopyData)(uintptr_t)get)((void *)(uintptr_t)connection, &message, 0) > 0)
        ((FreeMem)(uintptr_t)release)(message);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"read", read_py, METH_VARARGS, read_doc}, {"skip", skip_py, METH_VARARGS, skip_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_pgcopy", "PostgreSQL's binary COPY as Arrow.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pgcopy(void) { return PyModule_Create(&module); }
