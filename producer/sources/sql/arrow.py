"""Owns what the dialects' mappings to Arrow share: decimal types, and pages with values that have no form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa

from producer.errors import ConfigError, EncodeError
from producer.model import KeyScalar, RejectedRow
from producer.salvage import salvage
from producer.sources.sql.scalars import key_of
from producer.sources.sql.table import Column, Query, Rows

_BAD_VALUE_HINT = "correct the value, leave the column out by exclude, or set on_bad_record: dead_letter"


class Unreadable(Exception):
    """A value without a form in its column's type: its row in the page, and why."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row
        self.reason = reason

    def error(self, column: str, key: str) -> EncodeError:
        text = f"column {column!r}, row with key {key}: {self.reason}"
        return EncodeError(text, key=key, field=column, row=self.row, hint=_BAD_VALUE_HINT)


def read_rows(
    query: Query,
    count: int,
    convert: Callable[[Column, int, int], pa.Array],
    shown: Callable[[Column, int], str],
    *,
    cut: bool = False,
    key_at: Callable[[int], tuple[KeyScalar, ...]] | None = None,
) -> Rows:
    """The `count` rows of a result, of which `convert(column, start, stop)` gives a column's values or raises
    `Unreadable`; `shown` is one value as text, for messages. `key_at` is for databases whose stored keys are not those
    that Arrow has."""

    def batch_of(columns: Sequence[Column], start: int, stop: int) -> pa.RecordBatch:
        arrays = []
        for column in columns:
            try:
                arrays.append(convert(column, start, stop))
            except Unreadable as error:
                keys = [c for name in query.key for c in query.columns if c.name == name]
                raise error.error(column.name, ", ".join(shown(c, start + error.row) for c in keys)) from None
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([column.field for column in columns]))

    def rejected(row: int, error: EncodeError) -> RejectedRow:
        readable, others = [], {}
        for column in query.columns:
            try:
                readable.append((column.field, convert(column, row, row + 1)))
            except Unreadable:
                others[column.name] = shown(column, row)
        fields, arrays = [field for field, _ in readable], [array for _, array in readable]
        return RejectedRow(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), others, error)

    if not query.salvage:
        batch = batch_of(query.columns, 0, count)
        return Rows(batch, key_at or partial(key_of, batch, query.key), cut)
    pieces, bad = salvage(count, lambda start, stop: batch_of(query.columns, start, stop))
    if not bad:
        return Rows(pieces[0], key_at or partial(key_of, pieces[0], query.key), cut)
    table = pa.Table.from_batches(pieces, pa.schema([column.field for column in query.columns])).combine_chunks()
    batch = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], table.schema)
    keys = [column for column in query.columns if column.name in query.key]
    return Rows(
        batch,
        key_at or (lambda row: key_of(batch_of(keys, row, row + 1), query.key, 0)),
        cut,
        tuple((row, rejected(row, error)) for row, error in bad if isinstance(error, EncodeError)),
    )


def part(values: pa.Array, start: int, stop: int) -> pa.Array:
    """Some of a column's values. A copy, since the children of a sliced list are still those of the whole one."""
    whole = (start, stop) == (0, len(values))
    return values if whole else values.take(pa.array(range(start, stop), pa.int64()))


def decimal_type(precision: int, scale: int) -> pa.DataType:
    """The smallest Arrow type of `precision` digits, `scale` of them after the point; text where none has so many."""
    if precision <= 38:
        return pa.decimal128(max(precision, 1), scale)
    return pa.decimal256(precision, scale) if precision <= 76 else pa.string()


def configured_decimal(text: str) -> pa.DataType:
    """The type that ``decimal: "38,9"`` asks for; ConfigError for what is not a precision and a scale."""
    precision, _, scale = text.partition(",")
    if precision.strip().isdigit() and scale.strip().isdigit() and 0 <= int(scale) <= int(precision) <= 76:
        return decimal_type(int(precision), int(scale))
    raise ConfigError(f"decimal: {text!r} is not a precision and scale", hint='write "38,9", or string')
