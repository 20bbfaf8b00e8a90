"""Rows as JSON text: whatever the values, each line is what a JSON writer makes of the row."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from producer.sinks.json_text import json_rows

_TIMES = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))
_COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "double": (pa.float64(), st.floats()),
    "float": (pa.float32(), st.floats(width=32)),
    "bool": (pa.bool_(), st.booleans()),
    'te"xt': (pa.string(), st.text()),
    "large": (pa.large_string(), st.text()),
    "binary": (pa.binary(), st.binary()),
    "decimal": (pa.decimal128(20, 4), st.decimals(-(10**15), 10**15, places=4)),
    "timestamp": (pa.timestamp("us"), _TIMES),
    "timestamptz": (pa.timestamp("us", "UTC"), _TIMES.map(lambda t: t.replace(tzinfo=dt.UTC))),
    "date": (pa.date32(), st.dates(dt.date(1900, 1, 1))),
    "list": (pa.list_(pa.int32()), st.lists(st.none() | st.integers(-5, 5))),
    "struct": (pa.struct({"a": pa.string()}), st.fixed_dictionaries({"a": st.text()})),
    "enum": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", 'b"'])),
}
_ROWS = st.lists(st.fixed_dictionaries({n: st.none() | s for n, (_, s) in _COLUMNS.items()}), max_size=8)
_SCHEMA = pa.schema([(name, kind) for name, (kind, _) in _COLUMNS.items()])


def plain(value: Any) -> Any:
    """What the documented forms make of a value."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return base64.b64encode(value).decode()
        case decimal.Decimal():
            return float(value)
        case dt.datetime():
            zone = "Z" if value.tzinfo else ""
            return value.replace(tzinfo=None).isoformat(timespec="microseconds") + zone
        case dt.date():
            return value.isoformat()
    return value


@given(rows=_ROWS, skip=st.integers(0, 3))
def test_each_line_is_the_row(rows: list[dict[str, Any]], skip: int) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=_SCHEMA).slice(skip)
    lines = bytes(json_rows(batch, "\n")).decode().split("\n")
    assert lines.pop() == ""
    for line, row in zip(lines, batch.to_pylist(), strict=True):
        found = json.loads(line)
        for name, value in row.items():
            if name == "float" and value is not None and math.isfinite(value):
                assert np.float32(found[name]) == np.float32(value)
            else:
                assert found[name] == plain(value), name


def test_json_columns_stay_json_on_one_line() -> None:
    field = pa.field("j", pa.string(), metadata={"avro.logical": "json"})
    batch = pa.record_batch([pa.array(['{"a":\n [1,\r\n 2]}', None])], schema=pa.schema([field]))
    assert [json.loads(line) for line in bytes(json_rows(batch, "\n")).splitlines()] == [
        {"j": {"a": [1, 2]}},
        {"j": None},
    ]


def test_a_batch_without_rows_is_no_text() -> None:
    assert bytes(json_rows(pa.RecordBatch.from_pylist([], _SCHEMA), "\n")) == b""
