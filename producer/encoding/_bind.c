/* Owns the check of a program and its binding to the buffers of one batch: what the walk may then rely on. */
#include "_avro.h"

#include <stdlib.h>
#include <string.h>

static int is_integer(int layout) { return layout >= L_I8 && layout <= L_U64; }

/* --- the program ------------------------------------------------------------------------------------------------ */

static int check_symbols(const Program *g, int64_t at)
{
    if (at < 0 || at > g->blob_size - 4)
        return 0;
    int64_t count = LOAD(int32_t, g->blob + at, 0);
    if (count < 0 || count > (g->blob_size - at - 4) / 12)
        return 0;
    for (int64_t k = 0; k < count; k++) {
        const uint8_t *entry = g->blob + at + 4 + 12 * k;
        int64_t size = LOAD(int32_t, entry, 0), start = LOAD(int32_t, entry, 1);
        if (size < 0 || start < 0 || start > g->blob_size - size)
            return 0;
    }
    return 1;
}

static int check_layout(const Program *g, const Node *n)
{
    switch (n->op) {
    case OP_CONST: return n->a >= 0 && n->b >= 0 && n->a <= g->blob_size - n->b;
    case OP_BOOL: return n->layout == L_BITS;
    case OP_LONG64: return n->layout == L_I64;
    case OP_INT32: return n->layout == L_I32;
    case OP_INT: return is_integer(n->layout) && n->a > 0 && n->b > 0;
    case OP_FLOAT: return is_integer(n->layout) || n->layout == L_F32;
    case OP_DOUBLE: return is_integer(n->layout) || n->layout == L_F32 || n->layout == L_F64;
    case OP_BYTES: return n->layout == L_VAR32 || n->layout == L_VAR64;
    case OP_FIXED: return n->layout == L_FIXED && n->a >= 0 && n->a < INT32_MAX;
    case OP_UUID: return n->layout == L_FIXED && n->a == 16;
    case OP_DECIMAL:
        return (is_integer(n->layout) || (n->layout >= L_DEC32 && n->layout <= L_DEC256)) && n->b >= 0 && n->b < INT32_MAX;
    case OP_ENUM: return (n->layout == L_VAR32 || n->layout == L_VAR64) && check_symbols(g, n->a);
    case OP_ARRAY:
        return n->n_children == 1 && (n->layout == L_LIST32 || n->layout == L_LIST64 || (n->layout == L_LIST_FIXED && n->a >= 0));
    case OP_MAP: return n->n_children == 2 && n->layout == L_LIST32;
    case OP_RECORD: return n->layout == L_STRUCT;
    case OP_DICTIONARY: return n->n_children == 1 && is_integer(n->layout);
    }
    return 0;
}

static int64_t check_node(const Program *g, int64_t id, int depth)
{
    if (id >= g->n_nodes || depth > MAX_DEPTH)
        return -1;
    const Node *n = &g->nodes[id];
    if (!check_layout(g, n) || n->n_children < 0)
        return -1;
    int64_t next = id + 1;
    for (int k = 0; k < n->n_children; k++)
        if ((next = check_node(g, next, depth + 1)) < 0)
            return -1;
    return next - id == n->subtree ? next : -1;
}

int program_check(const Program *g)
{
    return g->n_nodes > 0 && g->nodes[0].op == OP_RECORD && check_node(g, 0, 0) == g->n_nodes;
}

/* --- binding to a batch ----------------------------------------------------------------------------------------- */

static int bind(Run *run, Node *n, const struct ArrowArray *array);

static int malformed(Run *run, const Node *n)
{
    fail(run, n, FAIL_LAYOUT);
    return 0;
}

static int bind_children(Run *run, Node *n, const struct ArrowArray *array, int64_t needed)
{
    Node *child = n + 1;
    for (int k = 0; k < n->n_children; k++, child += child->subtree) {
        if (child->op == OP_CONST)
            continue;
        if (child->column < 0 || child->column >= array->n_children)
            return malformed(run, child);
        const struct ArrowArray *a = array->children[child->column];
        if (!a || a->length < needed)
            return malformed(run, child);
        if (!bind(run, child, a))
            return 0;
    }
    return 1;
}

static int bind(Run *run, Node *n, const struct ArrowArray *array)
{
    if (n->op == OP_CONST)
        return 1;
    if (array->length < 0 || array->offset < 0 || array->length > INT64_MAX / 64 || array->offset > INT64_MAX / 64)
        return malformed(run, n);
    int64_t end = array->offset + array->length, buffers = 2;
    if (n->layout == L_STRUCT || n->layout == L_LIST_FIXED)
        buffers = 1;
    else if (n->layout == L_VAR32 || n->layout == L_VAR64)
        buffers = 3;
    if (array->n_buffers != buffers || !array->buffers)
        return malformed(run, n);
    n->offset = array->offset;
    n->valid = array->null_count == 0 ? NULL : array->buffers[0];
    n->x = buffers > 1 ? array->buffers[1] : NULL;
    n->data = buffers > 2 ? array->buffers[2] : NULL;
    if (buffers > 1 && !n->x && array->length > 0 && !(n->layout == L_FIXED && n->a == 0))
        return malformed(run, n);
    switch (n->op) {
    case OP_BYTES:
    case OP_ENUM:
        /* The interface does not tell a buffer's size, but no value may reach beyond the last one's end. */
        n->limit = array->length == 0 ? 0 : n->layout == L_VAR32 ? LOAD(int32_t, n->x, end) : LOAD(int64_t, n->x, end);
        return 1;
    case OP_RECORD:
        return bind_children(run, n, array, end);
    case OP_ARRAY:
        if (array->n_children != 1 || !array->children[0])
            return malformed(run, n);
        n->limit = array->children[0]->length;
        if (n->layout == L_LIST_FIXED && n->a > 0 && end > n->limit / n->a)
            return malformed(run, n);
        return bind(run, n + 1, array->children[0]);
    case OP_MAP: {
        const struct ArrowArray *entries = array->n_children == 1 ? array->children[0] : NULL;
        if (!entries || entries->n_children != 2 || entries->length < 0 || entries->offset < 0 ||
            entries->offset > INT64_MAX / 64 || entries->length > INT64_MAX / 64)
            return malformed(run, n);
        n->limit = entries->length;
        n->base = entries->offset;
        return bind_children(run, n, entries, entries->offset + entries->length);
    }
    case OP_DICTIONARY:
        if (!array->dictionary)
            return malformed(run, n);
        n->limit = array->dictionary->length;
        return bind(run, n + 1, array->dictionary);
    }
    return 1;
}

int run_bind(Run *run, const Program *g, const struct ArrowArray *array, int64_t rows)
{
    run->blob = g->blob;
    run->failure = FAIL_NONE;
    run->nodes = malloc(sizeof(Node) * (size_t)g->n_nodes);
    if (!run->nodes) {
        run->failure = FAIL_MEMORY;
        return 0;
    }
    memcpy(run->nodes, g->nodes, sizeof(Node) * (size_t)g->n_nodes);
    size_t room = NODE_ROOM * (size_t)g->n_nodes;
    if (run->out->room < room)
        run->out->room = room;
    if (array->length < rows)
        return malformed(run, run->nodes);
    return bind(run, run->nodes, array);
}

void run_free(Run *run)
{
    free(run->nodes);
    run->nodes = NULL;
}
