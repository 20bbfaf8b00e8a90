/* Owns the walk over Arrow buffers that writes Avro: one row at a time, no allocation for a value. */
#include "_avro.h"

#include <stdlib.h>
#include <string.h>

#define UNLIKELY(x) __builtin_expect(!!(x), 0)

typedef unsigned __int128 u128;

static inline int bit(const uint8_t *bits, int64_t i) { return (bits[i >> 3] >> (i & 7)) & 1; }

uint8_t *out_grow(Out *out, uint8_t *p, size_t n)
{
    size_t used = (size_t)(p - out->base);
    size_t cap = out->cap + out->cap / 2;
    if (cap < used + n + out->room)
        cap = used + n + out->room;
    uint8_t *base = realloc(out->base, cap);
    if (!base)
        return NULL;
    out->base = base;
    out->cap = cap;
    return base + used;
}

/* --- values ----------------------------------------------------------------------------------------------------- */

/* An integer of any width; 0 where an uint64 is above INT64_MAX. */
static inline int load_integer(const Node *n, int64_t i, int64_t *value)
{
    switch (n->layout) {
    case L_I8: *value = LOAD(int8_t, n->x, i); return 1;
    case L_I16: *value = LOAD(int16_t, n->x, i); return 1;
    case L_I32: *value = LOAD(int32_t, n->x, i); return 1;
    case L_I64: *value = LOAD(int64_t, n->x, i); return 1;
    case L_U8: *value = LOAD(uint8_t, n->x, i); return 1;
    case L_U16: *value = LOAD(uint16_t, n->x, i); return 1;
    case L_U32: *value = LOAD(uint32_t, n->x, i); return 1;
    default: *value = LOAD(int64_t, n->x, i); return *value >= 0;
    }
}

static int valid_utf8(const uint8_t *s, int64_t size)
{
    int64_t i = 0;
    while (i < size) {
        if (i + 8 <= size) {
            uint64_t word = LOAD(uint64_t, s + i, 0);
            /* Eight ASCII characters, or four of two bytes whose first is at least C2 (below it they are overlong). */
            if (!(word & 0x8080808080808080ull) ||
                ((word & 0xc0e0c0e0c0e0c0e0ull) == 0x80c080c080c080c0ull &&
                 (((word & 0x001e001e001e001eull) + 0x7fff7fff7fff7fffull) & 0x8000800080008000ull) == 0x8000800080008000ull)) {
                i += 8;
                continue;
            }
        }
        uint8_t c = s[i];
        if (c < 0x80) {
            i++;
            continue;
        }
        int more = c >= 0xC2 && c <= 0xDF ? 1 : (c & 0xF0) == 0xE0 ? 2 : c >= 0xF0 && c <= 0xF4 ? 3 : 0;
        if (!more || i + more >= size)
            return 0;
        uint8_t next = s[i + 1];
        /* Overlong forms, surrogates and what lies above U+10FFFF show in the second byte. */
        if ((c == 0xE0 && next < 0xA0) || (c == 0xED && next > 0x9F) || (c == 0xF0 && next < 0x90) || (c == 0xF4 && next > 0x8F))
            return 0;
        for (int k = 1; k <= more; k++)
            if ((s[i + k] & 0xC0) != 0x80)
                return 0;
        i += more + 1;
    }
    return 1;
}

static inline int is_ascii(const uint8_t *s, int64_t size)
{
    uint64_t seen = 0;
    int64_t i = 0;
    for (; i + 32 <= size; i += 32)
        seen |= LOAD(uint64_t, s + i, 0) | LOAD(uint64_t, s + i, 1) | LOAD(uint64_t, s + i, 2) | LOAD(uint64_t, s + i, 3);
    for (; i + 8 <= size; i += 8)
        seen |= LOAD(uint64_t, s + i, 0);
    for (; i < size; i++)
        seen |= s[i];
    return !(seen & 0x8080808080808080ull);
}

/* The bytes of a variable value; size -1 where the offsets make no sense. */
static inline const uint8_t *load_bytes(const Node *n, int64_t i, int64_t *size)
{
    int64_t start, end;
    if (n->layout == L_VAR32) {
        start = LOAD(int32_t, n->x, i);
        end = LOAD(int32_t, n->x, i + 1);
    } else {
        start = LOAD(int64_t, n->x, i);
        end = LOAD(int64_t, n->x, i + 1);
    }
    *size = start < 0 || end < start || end > n->limit || (end > start && !n->data) ? -1 : end - start;
    return n->data ? n->data + start : (const uint8_t *)"";
}

static uint8_t *emit_bytes(Run *run, const Node *n, int64_t i, uint8_t *p)
{
    int64_t size;
    const uint8_t *s = load_bytes(n, i, &size);
    if (UNLIKELY(size < 0))
        return fail(run, n, FAIL_LAYOUT);
    if (n->a && UNLIKELY(!is_ascii(s, size)) && !valid_utf8(s, size))
        return fail(run, n, FAIL_UTF8);
    p = put_varint(p, size);
    if (UNLIKELY(!(p = out_reserve(run->out, p, (size_t)size))))
        return fail(run, n, FAIL_MEMORY);
    memcpy(p, s, (size_t)size);
    return p + size;
}

static uint8_t *emit_fixed(Run *run, const Node *n, int64_t i, uint8_t *p)
{
    if (n->b)
        p = put_varint(p, n->a);
    if (UNLIKELY(!(p = out_reserve(run->out, p, (size_t)n->a))))
        return fail(run, n, FAIL_MEMORY);
    if (n->a)
        memcpy(p, n->x + i * n->a, (size_t)n->a);
    return p + n->a;
}

static uint8_t *emit_uuid(const Node *n, int64_t i, uint8_t *p)
{
    static const char hex[] = "0123456789abcdef";
    const uint8_t *s = n->x + i * 16;
    *p++ = 72; /* 36, zigzag */
    for (int k = 0; k < 16; k++) {
        if (k == 4 || k == 6 || k == 8 || k == 10)
            *p++ = '-';
        *p++ = (uint8_t)hex[s[k] >> 4];
        *p++ = (uint8_t)hex[s[k] & 15];
    }
    return p;
}

static const uint64_t POWERS[20] = {
    1ull, 10ull, 100ull, 1000ull, 10000ull, 100000ull, 1000000ull, 10000000ull, 100000000ull, 1000000000ull,
    10000000000ull, 100000000000ull, 1000000000000ull, 10000000000000ull, 100000000000000ull, 1000000000000000ull,
    10000000000000000ull, 100000000000000000ull, 1000000000000000000ull, 10000000000000000000ull};

/* |value| < 10^digits, for 256 bits in little-endian words. */
static int fits_precision(const uint64_t magnitude[4], int64_t digits)
{
    uint64_t power[4] = {1, 0, 0, 0};
    if (digits <= 19 && !(magnitude[1] | magnitude[2] | magnitude[3]))
        return magnitude[0] < POWERS[digits < 0 ? 0 : digits];
    if (digits >= 77)
        return 1;
    for (int64_t left = digits; left > 0;) {
        int64_t step = left > 19 ? 19 : left;
        u128 carry = 0;
        for (int k = 0; k < 4; k++) {
            carry += (u128)power[k] * POWERS[step];
            power[k] = (uint64_t)carry;
            carry >>= 64;
        }
        left -= step;
    }
    for (int k = 3; k >= 0; k--)
        if (magnitude[k] != power[k])
            return magnitude[k] < power[k];
    return 0;
}

/* Big-endian two's complement with room for the magnitude's bits and a sign, as fastavro writes it. */
static uint8_t *emit_decimal(Run *run, const Node *n, int64_t i, uint8_t *p)
{
    uint64_t w[4];
    int negative;
    if (n->layout == L_DEC128) {
        memcpy(w, n->x + i * 16, 16);
        negative = (int64_t)w[1] < 0;
        w[2] = w[3] = negative ? ~0ull : 0;
    } else if (n->layout == L_DEC256) {
        memcpy(w, n->x + i * 32, 32);
        negative = (int64_t)w[3] < 0;
    } else {
        int64_t v;
        if (n->layout == L_DEC32)
            v = LOAD(int32_t, n->x, i);
        else if (n->layout == L_DEC64)
            v = LOAD(int64_t, n->x, i);
        else
            load_integer(n, i, &v);
        negative = n->layout != L_U64 && v < 0;
        w[0] = (uint64_t)v;
        w[1] = w[2] = w[3] = negative ? ~0ull : 0;
    }
    uint64_t m[4] = {w[0], w[1], w[2], w[3]};
    if (negative) {
        u128 carry = 1;
        for (int k = 0; k < 4; k++) {
            carry += (uint64_t)~m[k];
            m[k] = (uint64_t)carry;
            carry >>= 64;
        }
    }
    if (UNLIKELY(!fits_precision(m, n->a)))
        return fail(run, n, FAIL_DECIMAL);
    int top = m[3] ? 3 : m[2] ? 2 : m[1] ? 1 : 0;
    int64_t bits = m[top] ? 64 * top + 64 - __builtin_clzll(m[top]) : 0;
    int64_t size = (bits + 8) / 8;
    if (n->b) {
        if (UNLIKELY(size > n->b))
            return fail(run, n, FAIL_DECIMAL);
        if (UNLIKELY(!(p = out_reserve(run->out, p, (size_t)n->b))))
            return fail(run, n, FAIL_MEMORY);
        memset(p, negative ? 0xFF : 0, (size_t)(n->b - size));
        p += n->b - size;
    } else {
        *p++ = (uint8_t)(size << 1);
    }
    for (int64_t k = size - 1; k >= 0; k--)
        *p++ = k < 32 ? (uint8_t)(w[k >> 3] >> (8 * (k & 7))) : (negative ? 0xFF : 0);
    return p;
}

/* Symbols lie sorted by (length, bytes), each as length, start and index. */
static uint8_t *emit_enum(Run *run, const Node *n, int64_t i, uint8_t *p)
{
    int64_t size;
    const uint8_t *s = load_bytes(n, i, &size);
    if (UNLIKELY(size < 0))
        return fail(run, n, FAIL_LAYOUT);
    const uint8_t *table = run->blob + n->a;
    int32_t low = 0, high = LOAD(int32_t, table, 0);
    while (low < high) {
        int32_t middle = (low + high) / 2;
        const uint8_t *entry = table + 4 + 12 * (int64_t)middle;
        int64_t length = LOAD(int32_t, entry, 0);
        int order = size != length ? (size < length ? -1 : 1) : memcmp(s, run->blob + LOAD(int32_t, entry, 1), (size_t)size);
        if (order == 0)
            return put_varint(p, LOAD(int32_t, entry, 2));
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return fail(run, n, FAIL_SYMBOL);
}

static uint8_t *emit_null(Run *run, const Node *n, uint8_t *p)
{
    if (n->op == OP_DICTIONARY)
        n++;
    if (UNLIKELY(n->null_branch < 0))
        return fail(run, n, FAIL_NULL);
    *p++ = (uint8_t)n->null_branch;
    return p;
}

static uint8_t *emit(Run *run, const Node *n, int64_t row, uint8_t *p);

static uint8_t *emit_items(Run *run, const Node *n, int64_t i, uint8_t *p)
{
    int64_t start, end;
    if (n->layout == L_LIST32) {
        start = LOAD(int32_t, n->x, i);
        end = LOAD(int32_t, n->x, i + 1);
    } else if (n->layout == L_LIST64) {
        start = LOAD(int64_t, n->x, i);
        end = LOAD(int64_t, n->x, i + 1);
    } else {
        start = i * n->a;
        end = start + n->a;
    }
    if (UNLIKELY(start < 0 || end < start || end > n->limit))
        return fail(run, n, FAIL_LAYOUT);
    if (end > start)
        p = put_varint(p, end - start);
    const Node *item = n + 1, *value = item + item->subtree;
    for (int64_t k = start; k < end; k++) {
        /* Each item may use up the free room of its own nodes, so it is made anew. */
        if (UNLIKELY(!(p = out_reserve(run->out, p, 0))))
            return fail(run, n, FAIL_MEMORY);
        if (UNLIKELY(!(p = emit(run, item, n->base + k, p))))
            return NULL;
        if (n->op == OP_MAP && UNLIKELY(!(p = emit(run, value, n->base + k, p))))
            return NULL;
    }
    *p++ = 0;
    return p;
}

static uint8_t *emit(Run *run, const Node *n, int64_t row, uint8_t *p)
{
    int64_t i = row + n->offset, v;
    if (n->valid && !bit(n->valid, i))
        return emit_null(run, n, p);
    if (n->value_branch >= 0)
        *p++ = (uint8_t)n->value_branch;
    switch (n->op) {
    case OP_CONST:
        if (UNLIKELY(!(p = out_reserve(run->out, p, (size_t)n->b))))
            return fail(run, n, FAIL_MEMORY);
        memcpy(p, run->blob + n->a, (size_t)n->b);
        return p + n->b;
    case OP_BOOL:
        *p++ = (uint8_t)bit(n->x, i);
        return p;
    case OP_LONG64:
        return put_varint(p, LOAD(int64_t, n->x, i));
    case OP_INT32:
        return put_varint(p, LOAD(int32_t, n->x, i));
    case OP_INT:
        if (UNLIKELY(!load_integer(n, i, &v)) || (n->a != 1 && __builtin_mul_overflow(v, n->a, &v)))
            return fail(run, n, FAIL_RANGE);
        if (n->b != 1)
            v = v / n->b - (v % n->b < 0);
        if (UNLIKELY(v < n->c || v > n->d))
            return fail(run, n, FAIL_RANGE);
        return put_varint(p, v);
    case OP_FLOAT: {
        float f;
        if (n->layout == L_F32)
            f = LOAD(float, n->x, i);
        else if (n->layout == L_U64)
            f = (float)(double)LOAD(uint64_t, n->x, i);
        else {
            load_integer(n, i, &v);
            f = (float)(double)v;
        }
        memcpy(p, &f, 4);
        return p + 4;
    }
    case OP_DOUBLE: {
        double d;
        if (n->layout == L_F64)
            d = LOAD(double, n->x, i);
        else if (n->layout == L_F32)
            d = LOAD(float, n->x, i);
        else if (n->layout == L_U64)
            d = (double)LOAD(uint64_t, n->x, i);
        else {
            load_integer(n, i, &v);
            d = (double)v;
        }
        memcpy(p, &d, 8);
        return p + 8;
    }
    case OP_BYTES:
        return emit_bytes(run, n, i, p);
    case OP_FIXED:
        return emit_fixed(run, n, i, p);
    case OP_UUID:
        return emit_uuid(n, i, p);
    case OP_DECIMAL:
        return emit_decimal(run, n, i, p);
    case OP_ENUM:
        return emit_enum(run, n, i, p);
    case OP_ARRAY:
    case OP_MAP:
        return emit_items(run, n, i, p);
    case OP_RECORD: {
        const Node *child = n + 1;
        for (int k = n->n_children; k > 0 && p; k--, child += child->subtree)
            p = emit(run, child, i, p);
        return p;
    }
    case OP_DICTIONARY:
        if (UNLIKELY(!load_integer(n, i, &v) || v < 0 || v >= n->limit))
            return fail(run, n, FAIL_LAYOUT);
        return emit(run, n + 1, v, p);
    }
    return fail(run, n, FAIL_LAYOUT);
}

uint8_t *run_row(Run *run, int64_t row, uint8_t *p)
{
    p = out_reserve(run->out, p, 0);
    return p ? emit(run, run->nodes, row, p) : fail(run, run->nodes, FAIL_MEMORY);
}
