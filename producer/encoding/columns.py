"""Owns the numpy form of the encoder: whole columns at a time, byte for byte what the C kernel writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from producer.encoding.plan import Layout, Node, Op
from producer.encoding.ragged import Bytes, Ints, Ragged, constant, fixed, join, prefixed, spread, varints


class ColumnFault(Exception):
    """A value cannot be written: which node, which row of its array, what is wrong."""

    def __init__(self, node: Node, row: int, reason: str) -> None:
        super().__init__(node.path, row, reason)
        self.node, self.row, self.reason = node, row, reason


# --- nodes ----------------------------------------------------------------------------------------------------------


def encode_columns(root: Node, batch: pa.RecordBatch) -> Ragged:
    """All rows of the (canonical) batch; ColumnFault where a value has no form."""
    return _record(root, [batch.column(i) for i in range(batch.num_columns)], batch.num_rows)


def _record(node: Node, columns: Sequence[pa.Array], rows: int) -> Ragged:
    parts = [
        constant(child.const, rows) if child.op is Op.CONST else _node(child, columns[child.column])
        for child in node.children
    ]
    return join(parts, rows)


def _node(node: Node, array: pa.Array) -> Ragged:
    if node.op is Op.CONST:
        return constant(node.const, len(array))
    if node.op is Op.DICTIONARY:
        return _node(node.children[0], array.dictionary_decode())
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    rows = len(array)
    if array.null_count == 0:
        values = _values(node, array)
        return values if node.value_branch < 0 else join([constant(bytes([node.value_branch]), rows), values], rows)
    present = np.asarray(pc.is_valid(array))
    if node.null_branch < 0:
        raise ColumnFault(node, int(np.argmin(present)), "null")
    places = np.flatnonzero(present)
    try:
        dense = _values(node, array.filter(pa.array(present)))
    except ColumnFault as fault:
        raise ColumnFault(fault.node, int(places[fault.row]), fault.reason) from None
    sizes = np.zeros(rows, dtype=np.int64)
    sizes[places] = dense.sizes
    branches = np.where(present, node.value_branch, node.null_branch).astype(np.uint8)
    return join([fixed(branches, 1, rows), Ragged.of_sizes(dense.data, sizes)], rows)


def _values(node: Node, array: pa.Array) -> Ragged:
    """`array` has no nulls."""
    rows = len(array)
    match node.op:
        case Op.BOOL:
            return fixed(np.asarray(array.cast(pa.uint8())), 1, rows)
        case Op.LONG64 | Op.INT32:
            return varints(_numbers(array, node.layout))
        case Op.INT:
            return varints(_integers(node, array))
        case Op.FLOAT:
            return _floats(_numbers(array, node.layout), np.float32)
        case Op.DOUBLE:
            return _floats(_numbers(array, node.layout), np.float64)
        case Op.BYTES:
            return prefixed(_variable(node, array))
        case Op.FIXED:
            raw = fixed(_raw(array, node.a), node.a, rows)
            return prefixed(raw) if node.b else raw
        case Op.UUID:
            return _uuids(_raw(array, 16).reshape(rows, 16))
        case Op.DECIMAL:
            return _decimals(node, array)
        case Op.ENUM:
            return _enums(node, array)
        case Op.ARRAY:
            return _arrays(node, array)
        case Op.MAP:
            return _maps(node, array)
        case Op.RECORD:
            columns = [pc.struct_field(array, [i]) for i in range(array.type.num_fields)]
            return _record(node, columns, rows)
    raise AssertionError(node.op)


_DTYPES: dict[Layout, type[np.generic]] = {
    Layout.I8: np.int8,
    Layout.I16: np.int16,
    Layout.I32: np.int32,
    Layout.I64: np.int64,
    Layout.U8: np.uint8,
    Layout.U16: np.uint16,
    Layout.U32: np.uint32,
    Layout.U64: np.uint64,
    Layout.F32: np.float32,
    Layout.F64: np.float64,
}


def _numbers(array: pa.Array, layout: Layout) -> npt.NDArray[Any]:
    """The values of a primitive array of any Arrow type (dates and times as their integers)."""
    dtype = np.dtype(_DTYPES[layout])
    if len(array) == 0:
        return np.empty(0, dtype=dtype)
    return np.frombuffer(array.buffers()[1], dtype=dtype, count=len(array), offset=array.offset * dtype.itemsize)


def _raw(array: pa.Array, width: int) -> Bytes:
    """The bytes of a fixed-width array."""
    size = len(array) * width
    if size == 0:
        return np.empty(0, dtype=np.uint8)
    return np.frombuffer(array.buffers()[1], dtype=np.uint8, count=size, offset=array.offset * width)


def _check(node: Node, good: npt.NDArray[np.bool_], reason: str) -> None:
    if not good.all():
        raise ColumnFault(node, int(np.argmin(good)), reason)


def _integers(node: Node, array: pa.Array) -> Ints:
    raw = _numbers(array, node.layout)
    if raw.dtype == np.uint64:
        _check(node, raw <= np.uint64(2**63 - 1), "range")
    values = raw.astype(np.int64)
    if node.a != 1:
        limit = (2**63 - 1) // node.a
        _check(node, (values >= -limit) & (values <= limit), "range")
        values = values * node.a
    if node.b != 1:
        values = values // node.b
    _check(node, (values >= node.c) & (values <= node.d), "range")
    return values


def _floats(values: npt.NDArray[Any], dtype: type[np.floating[Any]]) -> Ragged:
    if values.dtype != dtype:
        values = values.astype(np.float64).astype(dtype)
    width = np.dtype(dtype).itemsize
    return fixed(np.ascontiguousarray(values).view(np.uint8), width, len(values))


def _slices(array: pa.Array, dtype: type[np.generic]) -> Ints:
    """The n + 1 offsets of a list, string or binary array."""
    if len(array) == 0:
        return np.zeros(1, dtype=np.int64)
    width = np.dtype(dtype).itemsize
    offsets = np.frombuffer(array.buffers()[1], dtype=dtype, count=len(array) + 1, offset=array.offset * width)
    return offsets.astype(np.int64)


def _variable(node: Node, array: pa.Array) -> Ragged:
    offsets = _slices(array, np.int32 if node.layout is Layout.VAR32 else np.int64)
    buffer = array.buffers()[2]
    data = np.empty(0, dtype=np.uint8) if buffer is None else np.frombuffer(buffer, dtype=np.uint8)
    data = data[offsets[0] : offsets[-1]]
    ragged = Ragged(data, offsets - offsets[0])
    if node.op is Op.BYTES and node.a and bool((data >= 0x80).any()):
        _check_utf8(node, ragged)
    return ragged


def _check_utf8(node: Node, ragged: Ragged) -> None:
    raw = ragged.data.tobytes()
    cut = ragged.offsets[:-1][ragged.sizes > 0]
    try:
        raw.decode()
        whole = not bool((ragged.data[cut] & 0xC0 == 0x80).any())  # no row begins in the middle of a character
    except UnicodeDecodeError:
        whole = False
    if whole:
        return
    for row in range(len(ragged.offsets) - 1):
        try:
            raw[ragged.offsets[row] : ragged.offsets[row + 1]].decode()
        except UnicodeDecodeError:
            raise ColumnFault(node, row, "utf8") from None


def _uuids(raw: npt.NDArray[np.uint8]) -> Ragged:
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = np.empty((len(raw), 37), dtype=np.uint8)
    text[:, 0] = 72  # 36, zigzag
    text[:, [9, 14, 19, 24]] = ord("-")
    places = np.array([k for k in range(1, 37) if k not in (9, 14, 19, 24)])
    text[:, places[0::2]] = digits[raw >> 4]
    text[:, places[1::2]] = digits[raw & 15]
    return fixed(text.reshape(-1), 37, len(raw))


_DECIMAL_WIDTHS = {Layout.DEC32: 4, Layout.DEC64: 8, Layout.DEC128: 16, Layout.DEC256: 32}


def _decimals(node: Node, array: pa.Array) -> Ragged:
    """Big-endian two's complement of the magnitude's bits and a sign."""
    rows = len(array)
    width = _DECIMAL_WIDTHS.get(node.layout, 16)
    if node.layout in _DECIMAL_WIDTHS:
        little = _raw(array, width).reshape(rows, width)
    else:
        values = _numbers(array, node.layout)
        little = np.zeros((rows, 16), dtype=np.uint8)
        little[:, :8] = values.astype(np.int64).view(np.uint8).reshape(rows, 8)
        little[:, 8:] = np.where(values < 0, 0xFF, 0).astype(np.uint8)[:, None]
    big = np.zeros((rows, width + 1), dtype=np.uint8)
    big[:, 1:] = little[:, ::-1]
    negative = little[:, -1] >= 0x80 if rows else np.zeros(0, dtype=np.bool_)
    big[negative, 0] = 0xFF
    magnitude = _negated(big, negative)
    _check(node, _below(magnitude, 10**node.a), "decimal")
    used = magnitude != 0
    first = np.where(used.any(axis=1), used.argmax(axis=1), width)  # of the magnitude's bytes; one byte for zero
    top = magnitude[np.arange(rows), first]
    sizes = width + 1 - first + (top >= 0x80)
    if node.b:
        _check(node, sizes <= node.b, "decimal")
        filled = np.empty((rows, node.b), dtype=np.uint8)
        filled[:] = np.where(negative, 0xFF, 0).astype(np.uint8)[:, None]
        keep = min(node.b, width + 1)
        filled[:, node.b - keep :] = big[:, width + 1 - keep :]
        return fixed(filled.reshape(-1), node.b, rows)
    ends = np.arange(1, rows + 1, dtype=np.int64) * (width + 1)
    return prefixed(Ragged.of_sizes(big.reshape(-1)[spread(ends - sizes, sizes)], sizes))


def _negated(big: npt.NDArray[np.uint8], negative: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The magnitudes of big-endian two's complement numbers."""
    out = big.copy()
    carry: npt.NDArray[Any] = negative.astype(np.uint16)
    for k in range(big.shape[1] - 1, -1, -1):
        flipped = np.where(negative, ~big[:, k], big[:, k]).astype(np.uint16) + carry
        out[:, k] = flipped.astype(np.uint8)
        carry = flipped >> 8
    return out


def _below(magnitude: npt.NDArray[np.uint8], limit: int) -> npt.NDArray[np.bool_]:
    width = magnitude.shape[1]
    if limit >= 1 << 8 * width:
        return np.ones(len(magnitude), dtype=np.bool_)
    below = np.zeros(len(magnitude), dtype=np.bool_)
    open_ = np.ones(len(magnitude), dtype=np.bool_)
    for k, digit in enumerate(limit.to_bytes(width, "big")):
        below |= open_ & (magnitude[:, k] < digit)
        open_ &= magnitude[:, k] == digit
    return below


def _enums(node: Node, array: pa.Array) -> Ragged:
    kind = pa.large_string() if node.layout is Layout.VAR64 else pa.string()
    try:
        text = array.cast(kind)
    except pa.ArrowInvalid:
        raise ColumnFault(node, 0, "symbol") from None
    found = pc.index_in(text, value_set=pa.array(node.symbols, type=kind))
    _check(node, np.asarray(pc.is_valid(found)), "symbol")
    return varints(np.asarray(found))


def _arrays(node: Node, array: pa.Array) -> Ragged:
    if node.layout is Layout.LIST_FIXED:
        offsets = np.arange(len(array) + 1, dtype=np.int64) * node.a
        items = array.values.slice(array.offset * node.a, len(array) * node.a)
    else:
        offsets = _slices(array, np.int32 if node.layout is Layout.LIST32 else np.int64)
        items = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        offsets = offsets - offsets[0]
    return _blocks(offsets, _items(node.children[0], items, offsets))


def _maps(node: Node, array: pa.Array) -> Ragged:
    offsets = _slices(array, np.int32)
    start, count = offsets[0], int(offsets[-1] - offsets[0])
    offsets = offsets - start
    key, value = node.children
    keys = _items(key, array.keys.slice(start, count), offsets)
    values = (
        constant(value.const, count)
        if value.op is Op.CONST
        else _items(value, array.items.slice(start, count), offsets)
    )
    return _blocks(offsets, join([keys, values], count))


def _items(node: Node, items: pa.Array, offsets: Ints) -> Ragged:
    try:
        return _node(node, items)
    except ColumnFault as fault:
        row = int(np.searchsorted(offsets, fault.row, side="right")) - 1
        raise ColumnFault(fault.node, row, fault.reason) from None


def _blocks(offsets: Ints, items: Ragged) -> Ragged:
    """Each row's items as one Avro block: count, items, 0; for none just the 0."""
    rows = len(offsets) - 1
    counts = np.diff(offsets)
    some = counts > 0
    dense = varints(counts[some])
    sizes = np.zeros(rows, dtype=np.int64)
    sizes[some] = dense.sizes
    bodies = Ragged(items.data, items.offsets[offsets])
    return join([Ragged.of_sizes(dense.data, sizes), bodies, constant(b"\0", rows)], rows)
