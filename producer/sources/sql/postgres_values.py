"""Finds the row and the column whose value ended a page's query, which PostgreSQL and the driver do not say.

That is text that cannot be converted to UTF-8, what a view computes (a division by zero, say), a corrupt value, or
whatever the driver has no form for. The page is read again as far as it can be read: its good rows, and the bad one
after them. The rest is the next page. Each attempt is a transaction of its own, so rows may change in between: the bad
row counts only when it is seen right after the last good one, and is still bad.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from producer.errors import EncodeError, TransientError
from producer.model import KeyScalar, RejectedRow
from producer.sources.sql.adbc import Result
from producer.sources.sql.arrow import Unreadable
from producer.sources.sql.keyset import select_list
from producer.sources.sql.postgres_keys import key_at
from producer.sources.sql.table import Column, Query, Rows

#: Runs a SELECT; EncodeError where a value of it cannot be read.
Read = Callable[[str], Result]
#: A result as the page of a query; EncodeError for another value without a form.
ToRows = Callable[[Result, Query], Rows]
#: A result of one column and its guard as that column's values; Unreadable.
ToColumn = Callable[[Column, Result], pa.Array]

_GROWTH = 8  # from one attempt to the next, as long as no row is bad
_SKIPPING = re.compile(r" LIMIT \d+ OFFSET (?P<count>[1-9]\d*)$")
_NO_VALUE_HINT = "the where condition or a parameter of it, the order, or the view itself raises it"
_HIDDEN = "a value that cannot be shown"


def isolate(query: Query, sql: str, error: EncodeError, read: Read, to_rows: ToRows, to_column: ToColumn) -> Rows:
    """The rows of `sql` (the bound SQL of `query`) up to the first that cannot be read, which is among the rejected;
    without `Query.salvage` EncodeError with its key and column. `error` is what the query ended with."""
    head = f"SELECT {select_list(query.columns)} FROM "
    if not sql.startswith(head):
        raise error
    rest = " FROM " + sql[len(head) :]
    _refuse_where_skipped(query, rest, read)
    result, found = _good_rows(sql, read)
    rows = to_rows(result, query)
    if found is None:  # all of it, or enough for a page
        return rows
    bad = result.table.num_rows
    row = _find_row(query, rest, bad, read, to_column, result if bad else None)
    rejected = row.rejected(found)
    if not query.salvage:
        raise rejected.error
    key = _key(query, rejected, row)
    return Rows(
        rows.batch,
        lambda number: key if number == bad else rows.key_at(number),
        cut=True,
        rejected=(*rows.rejected, (bad, rejected)),
    )


def _refuse_where_skipped(query: Query, rest: str, read: Read) -> None:
    """EncodeError where it comes from a row that OFFSET skips: the server computes these as well."""
    match = _SKIPPING.search(rest)
    if match is None:
        return
    skipped = f"{rest[: match.start()]} LIMIT {match['count']}"
    try:
        read(f"SELECT count(p) FROM (SELECT {select_list(query.columns)}{skipped}) p")  # computes, and sends none
    except EncodeError as error:
        message = f"rows before the position cannot be read any more: {error.message}"
        raise EncodeError(message, hint="traversal: ID_RANGE does not look at them again") from None


def _key(query: Query, rejected: RejectedRow, row: _Row) -> tuple[KeyScalar, ...]:
    """The row's key; EncodeError where that cannot be read itself."""
    for name in query.key:
        if name in rejected.others:
            hint = "its position cannot be kept: correct the key, or leave the row out by where"
            raise EncodeError(rejected.error.message, key=rejected.error.key, field=name, hint=hint)
    positions = {column.name: row.position(column) for column in query.columns if column.position}
    return key_at(rejected.columns, positions, query.key, 0)


def _good_rows(sql: str, read: Read) -> tuple[Result, EncodeError | None]:
    """As many of the first rows as can be read, and the error of the next one; None where there is none."""

    def first(count: int) -> Result:
        return read(f"SELECT * FROM ({sql}) p LIMIT {count:d}")

    try:
        best, good, error = first(0), 0, None
    except EncodeError as reason:  # where there is no row yet
        raise EncodeError(f"rows cannot be read: {reason.message}", hint=_NO_VALUE_HINT) from None
    bad: int | None = None
    while bad is None or bad - good > 1:
        count = max(1, good * _GROWTH) if bad is None else (good + bad) // 2
        try:
            found = first(count)
        except EncodeError as reason:
            bad, error = count, reason
            continue
        if found.cut or found.table.num_rows < count:
            return found, None
        best, good = found, count
    return best, error


def _find_row(query: Query, rest: str, number: int, read: Read, to_column: ToColumn, good: Result | None) -> _Row:
    """The row that cannot be read, right after the last one of `good`; TransientError where it is no longer there.

    EncodeError without a column where the row cannot even be reached, so that no column's value is to blame.
    """
    keys = tuple(column for name in query.key for column in query.columns if column.name == name)
    texts = ", ".join(f"({column.select})::text" for column in keys)
    mark = f"pg_catalog.hashtextextended(pg_catalog.concat_ws('/', {texts or 'NULL'}), 0)"
    before = 0 if good is None else 1
    try:
        marks = read(_some(f"SELECT {mark}{rest}", number - before, 1 + before)).table.column(0)
    except EncodeError as error:
        raise EncodeError(f"rows cannot be read: {error.message}", hint=_NO_VALUE_HINT) from None
    if len(marks) < 1 + before:
        raise _changed()
    if good is not None:
        last = read(_some(", ".join([f"SELECT {mark}", *(column.select for column in keys)]) + rest, number - 1, 1))
        expected = [good.table.column(query.columns.index(column))[-1] for column in keys]
        if [values[0] for values in last.table.columns] != [marks[0], *expected]:
            raise _changed()
    return _Row(query, rest, number, mark, marks[-1], read, to_column)


@dataclass(frozen=True, slots=True)
class _Row:
    """The row number `number` of a query's result, whose SQL after its columns is `rest`. It cannot be read whole.

    `marked` is the value that the expression `mark` has in this row: it tells it from another one in its place.
    """

    query: Query
    rest: str
    number: int
    mark: str
    marked: pa.Scalar[Any]
    read: Read
    to_column: ToColumn

    def rejected(self, error: EncodeError) -> RejectedRow:
        """The row, column by column, and what is wrong with the first column that cannot be read."""
        fields, arrays, others = [], [], {}
        field, reason = "", error.message
        for column in self.query.columns:
            try:
                arrays.append(self.to_column(column, self._values(select_list((column,)))))
                fields.append(column.field)
            except (EncodeError, Unreadable) as found:
                others[column.name] = self._shown(column)
                if not field:
                    field, reason = column.name, found.message if isinstance(found, EncodeError) else found.reason
        if not field:
            self._refuse_readable()
        columns = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        key = ", ".join(others[name] if name in others else str(columns.column(name)[0]) for name in self.query.key)
        what = f"column {field!r}, row with key {key}" if field else f"row with key {key}"
        message = f"{what}: {reason}"
        return RejectedRow(columns, others, EncodeError(message, key=key, field=field, row=self.number))

    def _values(self, columns: str) -> Result:
        """Some columns of the row."""
        result = self.read(_some(f"SELECT {self.mark}, {columns}{self.rest}", self.number, 1))
        if list(result.table.column(0)) != [self.marked]:
            raise _changed()
        return Result(result.table.remove_column(0), result.cut)

    def position(self, column: Column) -> pa.Array:
        """The text of the key column's value, for a position."""
        return self._values(column.position).table.column(0).combine_chunks()

    def _shown(self, column: Column) -> str:
        """A value as text, with each byte that is not ASCII as ``\\351``: those that it has in the database."""
        text = f"encode(convert_to(({column.select})::text, getdatabaseencoding()), 'escape')"
        try:
            found = self._values(text).table.column(0)[0].as_py()
        except EncodeError:
            return _HIDDEN
        return _HIDDEN if found is None else str(found)

    def _refuse_readable(self) -> None:
        """TransientError where the whole row can be read by now."""
        with contextlib.suppress(EncodeError):
            self._values(select_list(self.query.columns))
            raise _changed()


def _some(sql: str, skip: int, count: int) -> str:
    return f"SELECT * FROM ({sql}) p OFFSET {skip:d} LIMIT {count:d}"


def _changed() -> TransientError:
    return TransientError("rows have changed while one that cannot be read was looked for")
