/* Owns the two checksums of Kafka's wire: murmur2 (partitioning) and CRC-32C (record batches). */
#include "_avro.h"

#include <string.h>

/* As in org.apache.kafka.common.utils.Utils.murmur2. */
uint32_t murmur2(const uint8_t *data, size_t size)
{
    const uint32_t m = 0x5bd1e995;
    uint32_t h = 0x9747b28cu ^ (uint32_t)size;
    size_t words = size / 4;
    for (size_t i = 0; i < words; i++) {
        const uint8_t *s = data + 4 * i;
        uint32_t k = (uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24;
        k *= m;
        k ^= k >> 24;
        k *= m;
        h = h * m ^ k;
    }
    data += 4 * words;
    switch (size & 3) {
    case 3: h ^= (uint32_t)data[2] << 16; /* fall through */
    case 2: h ^= (uint32_t)data[1] << 8;  /* fall through */
    case 1: h = (h ^ data[0]) * m;
    }
    h ^= h >> 13;
    h *= m;
    return h ^ h >> 15;
}

static uint32_t tables[8][256];

void crc32c_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        tables[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            tables[t][i] = tables[t - 1][i] >> 8 ^ tables[0][tables[t - 1][i] & 255];
}

/* Eight bytes a step, by Kounavis and Berry's slicing. */
static uint32_t crc_tables(uint32_t c, const uint8_t *s, size_t size)
{
    for (; size >= 8; s += 8, size -= 8) {
        uint32_t low = c ^ ((uint32_t)s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24);
        c = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
            tables[3][s[4]] ^ tables[2][s[5]] ^ tables[1][s[6]] ^ tables[0][s[7]];
    }
    for (; size; size--)
        c = c >> 8 ^ tables[0][(c ^ *s++) & 255];
    return c;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_hardware(uint32_t c, const uint8_t *s, size_t size)
{
    uint64_t wide = c;
    for (; size >= 8; s += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, s, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    c = (uint32_t)wide;
    for (; size; size--)
        c = __builtin_ia32_crc32qi(c, *s++);
    return c;
}
#endif

uint32_t crc32c(uint32_t crc, const uint8_t *data, size_t size)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return ~crc_hardware(~crc, data, size);
#endif
    return ~crc_tables(~crc, data, size);
}

uint32_t crc32c_portable(uint32_t crc, const uint8_t *data, size_t size) { return ~crc_tables(~crc, data, size); }
