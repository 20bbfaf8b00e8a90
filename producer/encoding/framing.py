"""Owns the numpy form of Kafka's record framing: for encoders other than the C kernel, block by block as it does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from producer.encoding.arrow_avro import EncodedColumn
from producer.encoding.ragged import Ints, Ragged, constant, gather, join, prefixed, varints

_NULL = b"\x01"  # length -1, zigzag


class TooLarge(Exception):
    """The record of `row` takes `size` bytes alone, which is over the limit."""

    def __init__(self, row: int, size: int) -> None:
        super().__init__(row, size)
        self.row, self.size = row, size


def frame(
    keys: EncodedColumn | None,
    values: EncodedColumn | None,
    partitions: npt.NDArray[np.int32],
    headers: bytes,
    max_block_bytes: int,
) -> Iterator[tuple[int, int, memoryview]]:
    """(partition, records, bytes) of each block, ordered by partition; `headers` with their count, encoded."""
    rows = len(partitions)
    rest = join([_field(keys, rows), _field(values, rows), constant(headers, rows)], rows)
    sizes = rest.sizes + 2  # with attributes and timestamp delta
    for number in np.unique(partitions):
        left = np.flatnonzero(partitions == number)
        while len(left):
            count = _fitting(sizes[left], max_block_bytes)
            if count == 0:
                body = sizes[left[:1]] + 1
                raise TooLarge(int(left[0]), int((body + varints(body).sizes)[0]))
            deltas = varints(np.arange(count, dtype=np.int64))
            block = prefixed(join([constant(b"\0\0", count), deltas, gather(rest, left[:count])], count))
            yield int(number), count, block.data.data
            left = left[count:]


def _field(column: EncodedColumn | None, rows: int) -> Ragged:
    """Keys or values behind their lengths."""
    if column is None:
        return constant(_NULL, rows)
    return prefixed(Ragged(np.frombuffer(column.data, dtype=np.uint8), column.offsets))


def _fitting(sizes: Ints, limit: int) -> int:
    """How many of the next records go into one block; `sizes` are without length and offset delta."""
    sizes = sizes[: limit // 7 + 1]  # a record is 7 bytes at least
    bodies = sizes + varints(np.arange(len(sizes), dtype=np.int64)).sizes
    totals = np.cumsum(bodies + varints(bodies).sizes)
    return int(np.searchsorted(totals, limit, side="right"))
