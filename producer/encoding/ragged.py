"""Owns rows of bytes of different sizes as numpy arrays, and the ways to put them together without a loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Row i is ``data[offsets[i]:offsets[i + 1]]``."""

    data: Bytes
    offsets: Ints

    @property
    def sizes(self) -> Ints:
        return np.diff(self.offsets)

    @staticmethod
    def of_sizes(data: Bytes, sizes: Ints) -> Ragged:
        return Ragged(data, _starts(sizes))


def _starts(sizes: Ints) -> Ints:
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def spread(starts: Ints, sizes: Ints) -> Ints:
    """The index of every byte of the slices (start, size), in order."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()), dtype=np.int64)


def gather(ragged: Ragged, rows: npt.NDArray[Any]) -> Ragged:
    """The given rows, in that order."""
    sizes = ragged.sizes[rows]
    return Ragged.of_sizes(ragged.data[spread(ragged.offsets[:-1][rows], sizes)], sizes)


def join(parts: Sequence[Ragged], rows: int) -> Ragged:
    """Row by row, the parts one after the other."""
    sizes = np.zeros(rows, dtype=np.int64)
    for part in parts:
        sizes += part.sizes
    offsets = _starts(sizes)
    data = np.empty(int(offsets[-1]), dtype=np.uint8)
    place = offsets[:-1].copy()
    for part in parts:
        widths = part.sizes
        width = int(widths[0]) if rows else 0
        if width <= 16 and bool((widths == width).all()):
            source = part.data.reshape(rows, width) if rows else part.data
            for k in range(width):
                data[place + k] = source[:, k]
        else:
            data[spread(place, widths)] = part.data
        place += widths
    return Ragged(data, offsets)


def constant(value: bytes, rows: int) -> Ragged:
    """The same bytes in every row."""
    data = np.tile(np.frombuffer(value, dtype=np.uint8), rows)
    return Ragged(data, np.arange(rows + 1, dtype=np.int64) * len(value))


def fixed(data: Bytes, width: int, rows: int) -> Ragged:
    """Rows of one width."""
    return Ragged(data, np.arange(rows + 1, dtype=np.int64) * width)


def varints(values: npt.NDArray[Any]) -> Ragged:
    """Zigzag varints, as Avro and Kafka both write them."""
    signed = values.astype(np.int64, copy=False)
    left = (signed << 1 ^ signed >> 63).view(np.uint64)
    sizes = np.ones(len(left), dtype=np.int64)
    for k in range(1, 10):
        more = left >= np.uint64(1 << 7 * k)
        if not more.any():
            break
        sizes += more
    offsets = _starts(sizes)
    data = np.empty(int(offsets[-1]), dtype=np.uint8)
    for k in range(int(sizes.max()) if len(sizes) else 0):
        here = sizes > k
        byte = (left[here] >> np.uint64(7 * k)).astype(np.uint8) & 0x7F
        data[offsets[:-1][here] + k] = byte | np.where(sizes[here] > k + 1, 0x80, 0).astype(np.uint8)
    return Ragged(data, offsets)


def prefixed(values: Ragged) -> Ragged:
    """Each row behind its size."""
    return join([varints(values.sizes), values], len(values.offsets) - 1)
