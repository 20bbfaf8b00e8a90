"""Owns Kafka's record batch: compression, the version 2 header, and a finished batch as aiokafka's sender wants one.

Format: https://kafka.apache.org/documentation/#recordbatch (magic 2, KIP-98). The records come framed already; the
producer's id, epoch and sequence are put in when aiokafka assigns them, and the CRC-32C is taken then.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal

import pyarrow as pa

from producer.encoding.checksums import crc32c

Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]

#: base offset, length, leader epoch, magic | CRC | attributes, last offset delta, first and last timestamp,
#: producer id, epoch, base sequence, record count
_HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES = _HEADER.size
_LENGTH_FROM = 12  # the length field counts what follows it
_CRC_AT = 17
_CRC_FROM = 21
_PRODUCER_AT = 43
_TRANSACTIONAL = 0x10
_CODEC_BITS: dict[Codec, int] = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_DEFAULT_LEVEL: dict[Codec, int | None] = {"none": None, "gzip": 6, "snappy": None, "lz4": None, "zstd": 1}

_SNAPPY_BLOCK_BYTES = 32 * 1024
_LZ4_BLOCK_BYTES = 64 * 1024


def compress(data: bytes | memoryview, codec: Codec, level: int | None = None) -> bytes:
    """`data` as Kafka wants that codec's stream; every codec drops the GIL while it works."""
    level = _DEFAULT_LEVEL[codec] if level is None else level
    match codec:
        case "zstd":
            return _bytes(pa.Codec("zstd", compression_level=level).compress(data, asbytes=True))
        case "gzip":
            return zlib.compress(data, -1 if level is None else level, zlib.MAX_WBITS | 16)
        case "snappy":
            return _snappy(memoryview(data))
        case "lz4":
            return _lz4(memoryview(data), level)
        case "none":
            return bytes(data)


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _snappy(data: memoryview) -> bytes:
    """The xerial stream of the Java client: magic, version 1, least version 1, then blocks behind their lengths."""
    codec = pa.Codec("snappy")
    parts = [b"\x82SNAPPY\x00", struct.pack(">ii", 1, 1)]
    for start in range(0, len(data), _SNAPPY_BLOCK_BYTES):
        block = _bytes(codec.compress(data[start : start + _SNAPPY_BLOCK_BYTES], asbytes=True))
        parts += (struct.pack(">i", len(block)), block)
    return b"".join(parts)


def _lz4(data: memoryview, level: int | None) -> bytes:
    """An LZ4 frame of independent 64 KiB blocks: Kafka refuses linked ones (KIP-57), which pyarrow's frames have.

    Frame: https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md. The flags 0x60 0x40 say version 1,
    independent blocks, no checksums, 64 KiB; 0x82 is their checksum byte.
    """
    codec = pa.Codec("lz4_raw", compression_level=level)
    parts = [b"\x04\x22\x4d\x18\x60\x40\x82"]
    for start in range(0, len(data), _LZ4_BLOCK_BYTES):
        plain = data[start : start + _LZ4_BLOCK_BYTES]
        block = _bytes(codec.compress(plain, asbytes=True))
        if len(block) < len(plain):
            parts += (struct.pack("<I", len(block)), block)
        else:  # the highest bit marks a block that is stored as it is
            parts += (struct.pack("<I", len(plain) | 0x8000_0000), bytes(plain))
    return b"".join([*parts, b"\x00\x00\x00\x00"])


class FinishedBatch:
    """A record batch that is complete but for the producer's id, in the place of aiokafka's ``BatchBuilder``.

    `records` are `count` framed records with offset deltas 0 to count - 1 and timestamp deltas 0. They are kept
    compressed, or as they are where compression would not make them smaller.
    """

    __slots__ = ("_buffer", "_count")

    def __init__(
        self,
        records: bytes | memoryview,
        count: int,
        timestamp_ms: int,
        *,
        codec: Codec = "zstd",
        level: int | None = None,
        transactional: bool = False,
    ) -> None:
        packed: bytes | memoryview = records
        attributes = _TRANSACTIONAL if transactional else 0
        if codec != "none":
            smaller = compress(records, codec, level)
            if len(smaller) < len(records):
                packed = smaller
                attributes |= _CODEC_BITS[codec]
        self._count = count
        self._buffer = bytearray(HEADER_BYTES + len(packed))
        length = len(self._buffer) - _LENGTH_FROM
        _HEADER.pack_into(
            self._buffer, 0, 0, length, -1, 2, 0, attributes, count - 1, timestamp_ms, timestamp_ms, -1, -1, -1, count
        )
        self._buffer[HEADER_BYTES:] = packed

    def append(self, *, timestamp: int | None, key: object, value: object, headers: object = ()) -> None:
        """Says, with aiokafka's ``None``, that nothing can be added."""

    def close(self) -> None:
        """It is closed from the beginning."""

    def closed(self) -> bool:
        return True

    def size(self) -> int:
        """Bytes of the whole batch, as it goes over the wire."""
        return len(self._buffer)

    def record_count(self) -> int:
        return self._count

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        # Java's client goes on at 0 after 2**31 - 1, aiokafka at -2**31, which the broker would refuse.
        struct.pack_into(">qhi", self._buffer, _PRODUCER_AT, producer_id, producer_epoch, base_sequence & 0x7FFF_FFFF)

    def _build(self) -> bytearray:
        struct.pack_into(">I", self._buffer, _CRC_AT, crc32c(memoryview(self._buffer)[_CRC_FROM:]))
        return self._buffer
