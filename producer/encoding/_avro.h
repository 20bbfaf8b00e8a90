/* Owns the shape of a compiled encoding program and the Arrow C Data Interface that it reads.
 *
 * A program is a tree of nodes in preorder, made by producer/encoding/plan.py; the numbers here are the same as there.
 */
#ifndef PRODUCER_AVRO_H
#define PRODUCER_AVRO_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* https://arrow.apache.org/docs/format/CDataInterface.html */
struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

enum op {
    OP_CONST = 0,   /* a, b: offset and length in the blob */
    OP_BOOL,
    OP_LONG64,      /* int64 as it is */
    OP_INT32,       /* int32 as it is */
    OP_INT,         /* any integer layout; value * a, then floor(/ b), then c <= value <= d */
    OP_FLOAT,       /* from float32, or an integer layout */
    OP_DOUBLE,      /* from float64, float32, or an integer layout */
    OP_BYTES,       /* VAR32, VAR64; a: 1 where it must be UTF-8 */
    OP_FIXED,       /* FIXED of a bytes; b: 1 where a length goes before it */
    OP_UUID,        /* FIXED of 16 bytes, written as text */
    OP_DECIMAL,     /* layout DEC32..DEC256 or an integer; a: precision; b: size of the fixed, 0 for bytes */
    OP_ENUM,        /* VAR32, VAR64; a: offset of the symbol table in the blob */
    OP_ARRAY,       /* LIST32, LIST64, LIST_FIXED of a items; one child */
    OP_MAP,         /* LIST32 of entries; two children: key and value */
    OP_RECORD,
    OP_DICTIONARY,  /* layout: of the indices; one child, over the dictionary's values */
    OP_COUNT
};

enum layout {
    L_NONE = 0, L_I8, L_I16, L_I32, L_I64, L_U8, L_U16, L_U32, L_U64, L_F32, L_F64, L_BITS,
    L_VAR32, L_VAR64, L_FIXED, L_DEC32, L_DEC64, L_DEC128, L_DEC256, L_LIST32, L_LIST64, L_LIST_FIXED, L_STRUCT,
    L_COUNT
};

enum failure {
    FAIL_NONE = 0, FAIL_NULL, FAIL_RANGE, FAIL_SYMBOL, FAIL_DECIMAL, FAIL_UTF8, FAIL_LAYOUT, FAIL_MEMORY, FAIL_TOO_LARGE
};

#define NODE_WORDS 11
#define MAX_DEPTH 64
/* The most that one node writes without asking for room itself: branch, varints, a decimal of 256 bits, a UUID. */
#define NODE_ROOM 48

typedef struct {
    int32_t op, layout, column, n_children, subtree;
    int32_t value_branch, null_branch;  /* the byte before a value and that for null; -1: no union, null refused */
    int64_t a, b, c, d;
    /* What follows is bound to one batch. */
    const uint8_t *valid;
    const uint8_t *x;     /* values, or offsets */
    const uint8_t *data;  /* bytes of a variable layout */
    int64_t offset;
    int64_t limit;        /* length of the child (lists), the dictionary, or the bytes */
    int64_t base;         /* offset of a map's entries */
} Node;

typedef struct {
    int64_t n_nodes;
    Node *nodes;
    uint8_t *blob;
    int64_t blob_size;
} Program;

typedef struct {
    uint8_t *base;
    size_t cap;
    size_t room;  /* is always free after reserve() on top of what was asked for */
} Out;

/* A program bound to one batch. */
typedef struct {
    Node *nodes;
    const uint8_t *blob;
    Out *out;
    int32_t failure;
    int64_t failed_node;
} Run;

int program_check(const Program *program);
int run_bind(Run *run, const Program *program, const struct ArrowArray *array, int64_t rows);
void run_free(Run *run);
/* Writes row `row` at `p` (inside out->base); the new end, or NULL with run->failure set. */
uint8_t *run_row(Run *run, int64_t row, uint8_t *p);
/* Notes the first failure; NULL, for `return fail(...)`. */
static inline uint8_t *fail(Run *run, const Node *n, int failure)
{
    if (!run->failure) {
        run->failure = failure;
        run->failed_node = n - run->nodes;
    }
    return NULL;
}

uint8_t *out_grow(Out *out, uint8_t *p, size_t n);

/* Makes sure of n + room bytes at `p`; the (moved) `p`, or NULL without memory. */
static inline uint8_t *out_reserve(Out *out, uint8_t *p, size_t n)
{
    return out->cap - (size_t)(p - out->base) >= n + out->room ? p : out_grow(out, p, n);
}

#define LOAD(type, base, i) ({ type v_; memcpy(&v_, (base) + (i) * (int64_t)sizeof(type), sizeof(type)); v_; })

static inline uint8_t *put_varint(uint8_t *p, int64_t value)
{
    uint64_t z = ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
    while (z >= 0x80) {
        *p++ = (uint8_t)(z | 0x80);
        z >>= 7;
    }
    *p++ = (uint8_t)z;
    return p;
}

static inline int varint_size(int64_t value)
{
    uint64_t z = ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
    return (63 - __builtin_clzll(z | 1)) / 7 + 1;
}

/* --- framing ----------------------------------------------------------------------------------------------------- */

typedef struct {
    int failure, in_key;
    int64_t node, row, size;
} Fault;

typedef struct {
    int32_t partition;
    int64_t count;
    uint8_t *base;
    size_t size, cap;
} Block;

typedef struct {
    Block *items;
    size_t count, cap;
} Blocks;

typedef struct {
    const uint8_t *key_prefix, *value_prefix, *headers;
    size_t key_prefix_size, value_prefix_size, headers_size, max_block, hint;
    int32_t partitions, partition;
    int64_t rows;
} Framing;

/* `open` has a block for each partition and `closed` takes those that are full; at the end all are in `closed`. The
 * runs write into `scratch`; a run of NULL is a null key or value. 0 with `bad` filled in where a row fails. */
int frame_rows(const Framing *f, Run *key_run, Run *value_run, Out *scratch, Block *open, Blocks *closed, Fault *bad);

/* --- checksums --------------------------------------------------------------------------------------------------- */

uint32_t murmur2(const uint8_t *data, size_t size);
uint32_t crc32c(uint32_t crc, const uint8_t *data, size_t size);
uint32_t crc32c_portable(uint32_t crc, const uint8_t *data, size_t size);
void crc32c_init(void);

#endif
