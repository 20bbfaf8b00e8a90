"""Owns Kafka's two checksums over many slices or large data: murmur2 (partitioning) and CRC-32C (record batches)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from producer.encoding import native

_M = np.uint32(0x5BD1E995)


def murmur2(
    data: bytes | memoryview, offsets: npt.NDArray[np.int64], *, compiled: bool = True
) -> npt.NDArray[np.int32]:
    """The hash of each slice ``data[offsets[i]:offsets[i + 1]]``, as ``Utils.murmur2`` of Kafka's Java client."""
    if compiled and native.kernel is not None:
        hashes = np.empty(len(offsets) - 1, dtype=np.int32)
        native.kernel.murmur2(data, offsets, hashes)
        return hashes
    flat = np.frombuffer(data, dtype=np.uint8)
    starts, sizes = offsets[:-1], np.diff(offsets)
    h = np.uint32(0x9747B28C) ^ sizes.astype(np.uint32)
    for word in range(int(sizes.max()) // 4 if len(sizes) else 0):
        rows = np.flatnonzero(sizes >= 4 * word + 4)
        k = _little(flat, starts[rows] + 4 * word, 4) * _M
        k = (k ^ k >> np.uint32(24)) * _M
        h[rows] = h[rows] * _M ^ k
    for extra in (1, 2, 3):
        rows = np.flatnonzero(sizes % 4 == extra)
        h[rows] = (h[rows] ^ _little(flat, starts[rows] + sizes[rows] // 4 * 4, extra)) * _M
    h = (h ^ h >> np.uint32(13)) * _M
    return (h ^ h >> np.uint32(15)).view(np.int32)


def _little(flat: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.uint32]:
    value = np.zeros(len(places), dtype=np.uint32)
    for k in range(count):
        value |= flat[places + k].astype(np.uint32) << np.uint32(8 * k)
    return value


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C (Castagnoli) of `data`."""
    if native.kernel is not None:
        return int(native.kernel.crc32c(data))
    from aiokafka.record.util import calc_crc32c  # its own C or Python form

    return int(calc_crc32c(data))
