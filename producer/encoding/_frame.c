/* Owns the framing of rows as Kafka records, into one growing block for each partition.
 *
 * https://kafka.apache.org/documentation/#record (version 2; timestamp deltas are 0).
 */
#include "_avro.h"

#include <stdlib.h>
#include <string.h>

static int push_block(Blocks *blocks, Block block)
{
    if (blocks->count == blocks->cap) {
        size_t cap = blocks->cap ? 2 * blocks->cap : 16;
        Block *items = realloc(blocks->items, cap * sizeof(Block));
        if (!items)
            return 0;
        blocks->items = items;
        blocks->cap = cap;
    }
    blocks->items[blocks->count++] = block;
    return 1;
}

static void fault(Fault *f, int failure, int in_key, int64_t node, int64_t row, int64_t size)
{
    *f = (Fault){failure, in_key, node, row, size};
}

/* One record at the end of its partition's open block, which is closed first where the record would not fit. */
static int append_record(const Framing *f, Block *open, Blocks *closed, const uint8_t *key, int64_t key_size,
                         const uint8_t *value, int64_t value_size, int64_t row, Fault *bad)
{
    int64_t fixed = 2 + varint_size(key_size) + (key_size > 0 ? key_size : 0) + varint_size(value_size) +
                    (value_size > 0 ? value_size : 0) + (int64_t)f->headers_size;
    int64_t body = fixed + varint_size(open->count);
    int64_t size = varint_size(body) + body;
    if (open->count && (open->size + (size_t)size > f->max_block || open->count == INT32_MAX)) {
        if (!push_block(closed, *open)) {
            fault(bad, FAIL_MEMORY, 0, 0, row, 0);
            return 0;
        }
        *open = (Block){open->partition, 0, NULL, 0, 0};
        body = fixed + 1;
        size = varint_size(body) + body;
    }
    if ((size_t)size > f->max_block || body > INT32_MAX) {
        fault(bad, FAIL_TOO_LARGE, 0, 0, row, size);
        return 0;
    }
    if (open->cap - open->size < (size_t)size) {
        size_t cap = open->cap ? open->cap + open->cap / 2 : f->hint;
        if (cap > f->max_block)
            cap = f->max_block;
        if (cap < open->size + (size_t)size)
            cap = open->size + (size_t)size;
        uint8_t *base = realloc(open->base, cap);
        if (!base) {
            fault(bad, FAIL_MEMORY, 0, 0, row, 0);
            return 0;
        }
        open->base = base;
        open->cap = cap;
    }
    uint8_t *p = put_varint(open->base + open->size, body);
    *p++ = 0; /* attributes */
    *p++ = 0; /* timestamp delta */
    p = put_varint(p, open->count);
    p = put_varint(p, key_size);
    if (key_size > 0) {
        memcpy(p, key, (size_t)key_size);
        p += key_size;
    }
    p = put_varint(p, value_size);
    if (value_size > 0) {
        memcpy(p, value, (size_t)value_size);
        p += value_size;
    }
    memcpy(p, f->headers, f->headers_size);
    open->size += (size_t)size;
    open->count++;
    return 1;
}

/* Key and value of a row go into `scratch`, small enough to stay in the cache, and from there into the block. */
int frame_rows(const Framing *f, Run *key_run, Run *value_run, Out *scratch, Block *open, Blocks *closed, Fault *bad)
{
    for (int64_t row = 0; row < f->rows; row++) {
        uint8_t *p = out_reserve(scratch, scratch->base, f->key_prefix_size);
        int64_t key_size = -1, value_size = -1;
        int32_t partition = f->partition;
        if (!p)
            goto no_memory;
        if (key_run) {
            memcpy(p, f->key_prefix, f->key_prefix_size);
            if (!(p = run_row(key_run, row, p + f->key_prefix_size))) {
                fault(bad, key_run->failure, 1, key_run->failed_node, row, 0);
                return 0;
            }
            key_size = p - scratch->base;
            partition = (int32_t)((murmur2(scratch->base, (size_t)key_size) & 0x7fffffffu) % (uint32_t)f->partitions);
        }
        if (value_run) {
            if (!(p = out_reserve(scratch, p, f->value_prefix_size)))
                goto no_memory;
            memcpy(p, f->value_prefix, f->value_prefix_size);
            if (!(p = run_row(value_run, row, p + f->value_prefix_size))) {
                fault(bad, value_run->failure, 0, value_run->failed_node, row, 0);
                return 0;
            }
            value_size = p - scratch->base - (key_size > 0 ? key_size : 0);
        }
        const uint8_t *value = scratch->base + (key_size > 0 ? key_size : 0);
        if (!append_record(f, &open[partition], closed, scratch->base, key_size, value, value_size, row, bad))
            return 0;
        continue;
    no_memory:
        fault(bad, FAIL_MEMORY, 0, 0, row, 0);
        return 0;
    }
    for (int32_t k = 0; k < f->partitions; k++) {
        if (!open[k].count)
            continue;
        if (!push_block(closed, open[k])) {
            fault(bad, FAIL_MEMORY, 0, 0, 0, 0);
            return 0;
        }
        open[k].base = NULL;
    }
    return 1;
}
