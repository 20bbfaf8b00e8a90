"""Owns the step from a page to Kafka's records: key, partition, value and record framing in one pass.

Framing: https://kafka.apache.org/documentation/#record (version 2). Partition: murmur2 of the key's bytes as Java's
DefaultPartitioner takes it. The C kernel writes straight from the Arrow buffers into one buffer for each open block;
without it numpy does the same from the encoded columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from producer.encoding import native
from producer.encoding.arrow_avro import FAILURES, AvroEncoder, EncodedColumn
from producer.encoding.checksums import murmur2
from producer.errors import EncodeError, RecordTooLargeError

#: Header of a record batch (magic 2), which `max_block_bytes` does not count.
BATCH_HEADER_BYTES = 61


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """`count` framed records for one partition, ready to be (compressed as) the body of a record batch.

    Offset deltas run from 0 to count - 1, timestamp deltas are 0: `timestamp_ms` is the batch's base and maximum.
    """

    partition: int
    count: int
    records: memoryview
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class EncodedPage:
    """A page's keys and values, each behind its prefix, and each row's partition.

    None in the place of keys or values: all of them are null.
    """

    keys: EncodedColumn | None
    values: EncodedColumn | None
    partitions: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.partitions)


class RecordEncoder:
    """Encodes pages as Kafka records with `value`'s Avro, keyed by `key`'s (None: no key).

    Errors name the row's key: EncodeError (field), RecordTooLargeError (size); both carry ``row``, the row's place
    in the batch, so that a caller can put that row aside. Safe to call from several threads.
    """

    def __init__(self, key: AvroEncoder | None, value: AvroEncoder, *, stream: str = "") -> None:
        self.key = key
        self.value = value
        self.stream = stream
        self._bytes_a_row = 128.0
        self._tombstone_key = key

    def encode(
        self,
        batch: pa.RecordBatch,
        *,
        partitions: int,
        max_block_bytes: int,
        timestamp_ms: int,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = 0,
    ) -> list[RecordBlock]:
        """The page's records in blocks of at most `max_block_bytes` (records alone, see `BATCH_HEADER_BYTES`).

        Ordered by partition; the blocks of one partition are in the order of the rows. Every record gets the same
        `headers`. Without a key encoder all go to `partition`.
        """
        framing = _Framing(partitions, partition, encode_headers(headers), max_block_bytes, timestamp_ms)
        return self._encode(self.key, self.value, batch, framing)

    def tombstones(
        self,
        key_batch: pa.RecordBatch,
        *,
        partitions: int,
        max_block_bytes: int,
        timestamp_ms: int,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> list[RecordBlock]:
        """Records with a null value for the keys in `key_batch`, which needs the key's columns only."""
        if self.key is None:
            raise EncodeError("a tombstone needs a key", stream=self.stream)
        key = self._tombstone_key
        if key is None or not key.arrow_schema.equals(key_batch.schema):
            key = AvroEncoder(self.key.avro_schema, key_batch.schema, prefix=self.key.prefix, kernel=self.key.kernel)
            self._tombstone_key = key
        framing = _Framing(partitions, 0, encode_headers(headers), max_block_bytes, timestamp_ms)
        return self._encode(key, None, key_batch, framing)

    def encoded_page(self, batch: pa.RecordBatch, partitions: int, *, partition: int = 0) -> EncodedPage:
        """Keys and values before framing, for sinks that read row by row."""
        return self._page(self.key, self.value, batch, partitions, partition)

    def _encode(
        self, key: AvroEncoder | None, value: AvroEncoder | None, batch: pa.RecordBatch, framing: _Framing
    ) -> list[RecordBlock]:
        if all(encoder is None or encoder.kernel == "c" for encoder in (key, value)):
            return self._frame_c(key, value, batch, framing)
        page = self._page(key, value, batch, framing.partitions, framing.partition)
        from producer.encoding.framing import TooLarge, frame

        blocks: list[RecordBlock] = []
        try:
            for number, count, records in frame(
                page.keys, page.values, page.partitions, framing.headers, framing.max_block_bytes
            ):
                blocks.append(RecordBlock(number, count, records, framing.timestamp_ms))
        except TooLarge as error:
            self._too_large(batch, error.row, error.size, framing.max_block_bytes)
        return blocks

    def _frame_c(
        self, key: AvroEncoder | None, value: AvroEncoder | None, batch: pa.RecordBatch, framing: _Framing
    ) -> list[RecordBlock]:
        key_array = key.canonical(batch).__arrow_c_array__()[1] if key else None
        value_array = value.canonical(batch).__arrow_c_array__()[1] if value else None
        hint = int(self._bytes_a_row * batch.num_rows / framing.partitions * 1.1) + 256
        try:
            blocks = native.kernel.frame(
                key.program if key else None,
                key_array,
                value.program if value else None,
                value_array,
                batch.num_rows,
                key.prefix if key else b"",
                value.prefix if value else b"",
                framing.headers,
                framing.partitions,
                framing.partition,
                framing.max_block_bytes,
                hint,
            )
        except native.kernel.Failure as failure:
            code, node, row, size, in_key = failure.args
            if FAILURES[code] == "large":
                self._too_large(batch, row, size, framing.max_block_bytes)
            encoder = key if in_key else value
            assert encoder is not None
            try:
                encoder.refuse(encoder.nodes[node], row, FAILURES[code])
            except EncodeError as error:
                self._name(error, batch)
        if batch.num_rows:
            self._bytes_a_row = sum(len(records) for _, _, records in blocks) / batch.num_rows
        return [
            RecordBlock(number, count, memoryview(records), framing.timestamp_ms)
            for number, count, records in sorted(blocks, key=lambda block: block[0])
        ]

    def _page(
        self,
        key: AvroEncoder | None,
        value: AvroEncoder | None,
        batch: pa.RecordBatch,
        partitions: int,
        partition: int,
    ) -> EncodedPage:
        try:
            keys = key.encode(batch) if key else None
            values = value.encode(batch) if value else None
        except EncodeError as error:
            self._name(error, batch)
        if keys is None:
            return EncodedPage(keys, values, np.full(batch.num_rows, partition, dtype=np.int32))
        hashes = murmur2(keys.data, keys.offsets) & np.int32(0x7FFFFFFF)
        return EncodedPage(keys, values, (hashes % np.int32(partitions)).astype(np.int32))

    def _too_large(self, batch: pa.RecordBatch, row: int, size: int, limit: int) -> NoReturn:
        key = self._key_text(batch, row)
        raise RecordTooLargeError(
            f"the record with key {key} takes {size} bytes, the limit is {limit}",
            stream=self.stream,
            key=key,
            size=size,
            row=row,
            hint="raise max_request_size here and max.message.bytes on the topic",
        )

    def _name(self, error: EncodeError, batch: pa.RecordBatch) -> NoReturn:
        key = "" if error.row is None else self._key_text(batch, error.row)
        message = f"the record with key {key}: {error.message}" if key else error.message
        raise EncodeError(
            message, stream=self.stream, key=key, field=error.field, row=error.row, hint=error.hint
        ) from None

    def _key_text(self, batch: pa.RecordBatch, row: int) -> str:
        """``id=5``, or the row's number where there is no key."""
        if self.key is None:
            return f"(none, row {row} of the page)"
        return self.key.key_text(batch, row)


@dataclass(frozen=True, slots=True)
class _Framing:
    partitions: int
    partition: int
    headers: bytes
    max_block_bytes: int
    timestamp_ms: int


def encode_headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """The count and the headers as they end every record."""
    parts = [_varint(len(headers))]
    for name, value in headers:
        text = name.encode()
        parts += [_varint(len(text)), text, _varint(len(value)), value]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    """A zigzag varint of a length or count."""
    rest, out = value << 1, bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])
