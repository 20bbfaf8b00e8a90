"""Finds the row and the column whose value ended a page's query, which PostgreSQL and the driver do not say.

That is text that cannot be converted to UTF-8, what a view computes (a division by zero, say), a corrupt value, and
whatever the driver has no form for. The page is read again, in one snapshot, as far as it can be read: its good rows,
and the bad one after them. The rest is the next page.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from producer.errors import EncodeError, PermanentError
from producer.model import RejectedRow
from producer.sources.sql.adbc import Result
from producer.sources.sql.arrow import Unreadable
from producer.sources.sql.keyset import select_list
from producer.sources.sql.scalars import key_scalar
from producer.sources.sql.table import Column, Query, Rows

#: Runs a SELECT; EncodeError where a value of it cannot be read, and then the transaction is as it was before.
Read = Callable[[str], Result]
#: A result as the page of a query; EncodeError for another value without a form.
ToRows = Callable[[Result, Query], Rows]
#: A result of one column and its guard as that column's values; Unreadable.
ToColumn = Callable[[Column, Result], pa.Array]

_GROWTH = 8  # from one attempt to the next, as long as no row is bad
_HIDDEN = "a value that cannot be shown"


def isolate(query: Query, sql: str, error: EncodeError, read: Read, to_rows: ToRows, to_column: ToColumn) -> Rows:
    """The rows of `sql` (the bound SQL of `query`) up to the first that cannot be read, which is among the rejected;
    without `Query.salvage` EncodeError with its key and column. `error` is what the query ended with."""
    head = f"SELECT {select_list(query.columns)} FROM "
    if not sql.startswith(head):
        raise error
    result, found = _good_rows(sql, read)
    rows = to_rows(result, query)
    if found is None:  # all of it, or enough for a page
        return rows
    rest, bad = " FROM " + sql[len(head) :], result.table.num_rows
    _refuse_without_value(rest, bad, read)
    rejected = _rejected(query, rest, bad, found, read, to_column)
    if not query.salvage:
        raise rejected.error
    keys = []
    for name in query.key:
        if name in rejected.others:
            hint = "its position cannot be kept: correct the key, or leave the row out by where"
            raise EncodeError(rejected.error.message, key=rejected.error.key, field=name, row=bad, hint=hint)
        column = rejected.columns.schema.field(name)
        keys.append(key_scalar(column, rejected.columns.column(name)[0]))
    return Rows(
        rows.batch,
        lambda row: tuple(keys) if row == bad else rows.key_at(row),
        cut=True,
        rejected=(*rows.rejected, (bad, rejected)),
    )


def _good_rows(sql: str, read: Read) -> tuple[Result, EncodeError | None]:
    """As many of the first rows as can be read, and the error of the next one; None where there is none."""

    def first(count: int) -> Result:
        return read(f"SELECT * FROM ({sql}) p LIMIT {count:d}")

    best, good, error = first(0), 0, None
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


def _refuse_without_value(rest: str, row: int, read: Read) -> None:
    """PermanentError where the row cannot even be reached: no column's value is to blame."""
    try:
        read(_one(f"SELECT 1{rest}", row))
    except EncodeError as error:
        hint = "the where condition, the order or the view itself raises it"
        raise PermanentError(f"rows cannot be read: {error.message}", hint=hint) from None


def _rejected(query: Query, rest: str, row: int, error: EncodeError, read: Read, to_column: ToColumn) -> RejectedRow:
    """The row, column by column, and what is wrong with the first column that cannot be read."""
    fields, arrays, others = [], [], {}
    field, reason = "", error.message
    for column in query.columns:
        try:
            arrays.append(to_column(column, read(_one(f"SELECT {select_list((column,))}{rest}", row))))
            fields.append(column.field)
        except (EncodeError, Unreadable) as found:
            others[column.name] = _shown(column, rest, row, read)
            if not field:
                field, reason = column.name, found.message if isinstance(found, EncodeError) else found.reason
    columns = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
    key = ", ".join(others[name] if name in others else str(columns.column(name)[0]) for name in query.key)
    what = f"column {field!r}, row with key {key}" if field else f"row with key {key}"
    return RejectedRow(columns, others, EncodeError(f"{what}: {reason}", key=key, field=field, row=row))


def _shown(column: Column, rest: str, row: int, read: Read) -> str:
    """A value as text, with each byte that is not ASCII as ``\\351``: those that it has in the database."""
    text = f"encode(convert_to(({column.select})::text, getdatabaseencoding()), 'escape')"
    try:
        found = read(_one(f"SELECT {text}{rest}", row)).table.column(0)[0].as_py()
    except EncodeError:
        return _HIDDEN
    return _HIDDEN if found is None else str(found)


def _one(sql: str, row: int) -> str:
    return f"SELECT * FROM ({sql}) p OFFSET {row:d} LIMIT 1"
