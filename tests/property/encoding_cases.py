"""Owns the Hypothesis strategies of the encoder's tests: Arrow types with values, and what fastavro is to be given."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

UTC = dt.UTC


@dataclass(frozen=True, slots=True)
class Case:
    """An Arrow type, its values as pyarrow takes them, and how each becomes what fastavro takes."""

    arrow: pa.DataType
    values: st.SearchStrategy[Any]
    to_avro: Callable[[Any], Any] = lambda value: value
    metadata: dict[str, str] | None = None


def _ints(arrow: pa.DataType, low: int, high: int, to_avro: Callable[[Any], Any] = lambda value: value) -> Case:
    edges = st.sampled_from([low, high, max(low, -1), 0, 1, 63, 64, max(low, -64), max(low, -65), 127])
    return Case(arrow, edges | st.integers(low, high), to_avro)


def _decimals(arrow: pa.DataType) -> Case:
    top = 10**arrow.precision - 1
    edges = [v for v in (0, 127, 128, 255, 256, 2**31, 2**63, 2**64, 2**127, top) if v <= top]
    unscaled = st.sampled_from([s * v for v in edges for s in (1, -1)]) | st.integers(-top, top)
    with_room = decimal.Context(prec=100)
    return Case(arrow, unscaled.map(lambda v: decimal.Decimal(v).scaleb(-arrow.scale, with_room)))


_micro_naive = st.datetimes() | st.sampled_from(
    [
        dt.datetime(1, 1, 1),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
        dt.datetime(1970, 1, 1),
        dt.datetime(1969, 12, 31, 23, 59, 59, 999999),
    ]
)
_nano_range = st.datetimes(dt.datetime(1678, 1, 1), dt.datetime(2262, 1, 1))
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(["", "\0", "ü€😀", "x" * 200])
_float32 = st.floats(width=32)
_double = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324])
_micros = dt.timedelta(microseconds=1)


def _timestamps(unit: str, zone: str | None) -> Case:
    naive = {"ns": _nano_range}.get(unit, _micro_naive)
    cut = {"s": 1_000_000, "ms": 1000}.get(unit, 1)
    whole = naive.map(lambda v: v.replace(microsecond=v.microsecond // cut * cut))
    return Case(pa.timestamp(unit, zone), whole.map(lambda v: v.replace(tzinfo=UTC)) if zone else whole)


SCALARS: dict[str, Case] = {
    "null": Case(pa.null(), st.none()),
    "bool": Case(pa.bool_(), st.booleans()),
    "int8": _ints(pa.int8(), -128, 127),
    "int16": _ints(pa.int16(), -(2**15), 2**15 - 1),
    "int32": _ints(pa.int32(), -(2**31), 2**31 - 1),
    "int64": _ints(pa.int64(), -(2**63), 2**63 - 1),
    "uint8": _ints(pa.uint8(), 0, 255),
    "uint16": _ints(pa.uint16(), 0, 2**16 - 1),
    "uint32": _ints(pa.uint32(), 0, 2**32 - 1),
    "uint64": _ints(pa.uint64(), 0, 2**64 - 1, decimal.Decimal),
    "float16": Case(pa.float16(), st.floats(width=16)),
    "float32": Case(pa.float32(), _float32),
    "float64": Case(pa.float64(), _double),
    "decimal32": _decimals(pa.decimal32(9, 2)),
    "decimal64": _decimals(pa.decimal64(18, 9)),
    "decimal128": _decimals(pa.decimal128(12, 2)),
    "decimal128 wide": _decimals(pa.decimal128(38, 10)),
    "decimal256": _decimals(pa.decimal256(76, 30)),
    "date32": Case(pa.date32(), st.dates()),
    "date64": Case(pa.date64(), st.dates()),
    "time32 s": Case(pa.time32("s"), st.times().map(lambda t: t.replace(microsecond=0))),
    "time32 ms": Case(pa.time32("ms"), st.times().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000))),
    "time64 us": Case(pa.time64("us"), st.times()),
    "time64 ns": Case(pa.time64("ns"), st.times()),
    "duration": Case(
        pa.duration("us"), st.integers(-(10**15), 10**15).map(lambda v: v * _micros), lambda value: value // _micros
    ),
    "string": Case(pa.string(), _text),
    "large_string": Case(pa.large_string(), _text),
    "string_view": Case(pa.string_view(), _text),
    "json": Case(pa.string(), st.just('{"a": [1]}'), metadata={"avro.logical": "json"}),
    "uuid text": Case(pa.string(), st.uuids().map(str), metadata={"avro.logical": "uuid"}),
    "uuid": Case(pa.uuid(), st.uuids().map(lambda u: u.bytes), lambda value: uuid.UUID(bytes=value)),
    "uuid bytes": Case(
        pa.binary(16), st.binary(min_size=16, max_size=16), lambda v: uuid.UUID(bytes=v), {"avro.logical": "uuid"}
    ),
    "binary": Case(pa.binary(), st.binary(max_size=40)),
    "large_binary": Case(pa.large_binary(), st.binary(max_size=40)),
    "binary_view": Case(pa.binary_view(), st.binary(max_size=40)),
    "fixed": Case(pa.binary(5), st.binary(min_size=5, max_size=5)),
    "enum": Case(pa.string(), st.sampled_from(["red", "green", "b"]), metadata={"avro.enum": '["red", "green", "b"]'}),
    "enum of odd names": Case(
        pa.string(), st.sampled_from(["a b", "é"]), metadata={"avro.enum": json.dumps(["a b", "é"])}
    ),
    "enum dictionary": Case(
        pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["red", "b"]), metadata={"avro.enum": '["b", "red"]'}
    ),
    "dictionary": Case(pa.dictionary(pa.uint16(), pa.large_string()), _text),
    "dictionary of numbers": Case(pa.dictionary(pa.int64(), pa.int64()), st.integers(-5, 5)),
    **{f"timestamp {unit}": _timestamps(unit, None) for unit in ("s", "ms", "us", "ns")},
    **{f"timestamptz {unit}": _timestamps(unit, "Europe/Berlin") for unit in ("s", "ms", "us", "ns")},
}


def _lists(item: Case, make: Callable[[pa.DataType], pa.DataType], size: int | None = None) -> Case:
    values = st.lists(st.none() | item.values, min_size=size or 0, max_size=4 if size is None else size)
    return Case(make(item.arrow), values, lambda v: [None if x is None else item.to_avro(x) for x in v])


def _struct(one: Case, two: Case) -> Case:
    arrow = pa.struct([pa.field("one", one.arrow), pa.field("two words", two.arrow, nullable=False)])
    values = st.fixed_dictionaries({"one": st.none() | one.values, "two words": two.values})
    return Case(
        arrow,
        values,
        lambda v: {
            "one": None if v["one"] is None else one.to_avro(v["one"]),
            "two_words": two.to_avro(v["two words"]),
        },
    )


def _map(item: Case) -> Case:
    values = st.dictionaries(_text, st.none() | item.values, max_size=3).map(lambda d: list(d.items()))
    return Case(
        pa.map_(pa.string(), item.arrow),
        values,
        lambda pairs: {key: None if value is None else item.to_avro(value) for key, value in pairs},
    )


#: pyarrow cannot build nested arrays of these from Python values; as columns they are tested.
_NOT_NESTED = {
    "null",
    "uuid",
    "string_view",
    "binary_view",
    "enum dictionary",
    "dictionary",
    "dictionary of numbers",
    "float16",
}
_plain = st.sampled_from([case for name, case in SCALARS.items() if name not in _NOT_NESTED and not case.metadata])

_nested = st.recursive(
    _plain,
    lambda inner: st.one_of(
        inner.map(lambda case: _lists(case, pa.list_)),
        inner.map(lambda case: _lists(case, pa.large_list)),
        inner.map(lambda case: _lists(case, lambda arrow: pa.list_(arrow, 2), 2)),
        st.tuples(inner, inner).map(lambda pair: _struct(*pair)),
        inner.map(_map),
    ),
    max_leaves=4,
)

cases = st.sampled_from(list(SCALARS.values())) | _nested


@dataclass(frozen=True, slots=True)
class Table:
    """A batch (perhaps a slice of a longer one) and its rows as fastavro takes them, by column number."""

    batch: pa.RecordBatch
    rows: list[list[Any]]


@st.composite
def tables(draw: st.DrawFn, columns: st.SearchStrategy[Case] = cases, max_rows: int = 12) -> Table:
    rows = draw(st.integers(0, max_rows))
    chosen = draw(st.lists(columns, min_size=1, max_size=5))
    fields, arrays, avro = [], [], []
    for number, case in enumerate(chosen):
        nullable = pa.types.is_null(case.arrow) or draw(st.booleans())
        values = draw(st.lists(st.none() | case.values if nullable else case.values, min_size=rows, max_size=rows))
        fields.append(pa.field(f"c{number}", case.arrow, nullable=nullable, metadata=case.metadata))
        arrays.append(pa.array(values, case.arrow))
        avro.append([None if value is None else case.to_avro(value) for value in values])
    start = draw(st.integers(0, rows))
    stop = draw(st.integers(start, rows))
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)).slice(start, stop - start)
    return Table(batch, [[column[row] for column in avro] for row in range(start, stop)])
