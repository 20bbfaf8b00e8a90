"""Rows with NULL in a column of the key or order: whether there can be any, how many there are, and which.

No comparison with NULL is true, so paging by key never reaches such a row. Where the database enforces NOT NULL on all
of these columns, nothing is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from producer.model import NullKeys, RejectedRow, Traversal
from producer.sources.sql import keyset
from producer.sources.sql.keyset import Selection
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column, Database, Rows, Session

#: A row without any value in its key is named by so many of its other columns.
_OTHER_COLUMNS = 3


def nullable_columns(selection: Selection, traversal: Traversal) -> tuple[Column, ...]:
    """The columns in which a NULL keeps a row off the topic, and which may hold one: those of the order, or for OFFSET,
    which reads rows by counting them, those of the key."""
    names = selection.key if traversal == "OFFSET" else selection.order_names
    columns = (selection.table.column(name) for name in names)
    return tuple(column for column in columns if selection.table.is_view or column.field.nullable)


async def count(
    session: Session, database: Database, selection: Selection, columns: Sequence[Column], named: int
) -> NullKeys:
    """The rows of `selection` with NULL in one of `columns`; names the first `named` of each."""
    rows = 0
    holding: list[str] = []
    names: list[str] = []
    for column, condition in _conditions(columns, database.mark):
        narrowed = keyset.also(selection, condition)
        query = keyset.count_query(narrowed, None, None, mark=database.mark, row_values=database.row_values)
        ((found,),) = await session.keys(query)
        if int(str(found)):
            rows += int(str(found))
            holding.append(column.name)
            if len(names) < named:
                names += await _names(session, narrowed, named - len(names))
    return NullKeys(rows, tuple(holding), tuple(names))


def _conditions(columns: Sequence[Column], mark: str) -> list[tuple[Column, str]]:
    """For each column the condition that it is the first one with a NULL: an index on it answers that."""
    names = [f"t.{quote(column.name, mark)}" for column in columns]
    return [
        (column, " AND ".join([f"{names[i]} IS NULL", *(f"{before} IS NOT NULL" for before in names[:i])]))
        for i, column in enumerate(columns)
    ]


async def _names(session: Session, selection: Selection, most: int) -> list[str]:
    keys = [_with_null(column) for column in selection.order_columns]
    others = [_with_null(c) for c in selection.columns if c.name not in selection.order_names][:_OTHER_COLUMNS]
    columns = tuple(keys + others)
    query = keyset.rows_query(selection, columns, [], f" LIMIT {most:d}")
    rows = await session.fetch(replace(query, key=(), salvage=True))
    return [_name(row, keys, others) for row in _as_texts(rows, columns)]


def _with_null(column: Column) -> Column:
    return replace(column, field=column.field.with_nullable(True))


def _name(row: dict[str, str | None], keys: Sequence[Column], others: Sequence[Column]) -> str:
    """``a=1, b=NULL``; with other columns where the key has no value at all."""
    shown = keys if any(row[column.name] is not None for column in keys) else [*keys, *others]
    return ", ".join(f"{c.name}={'NULL' if row[c.name] is None else row[c.name]}" for c in shown)


def _as_texts(rows: Rows, columns: Sequence[Column]) -> list[dict[str, str | None]]:
    good = [{c.name: _text(rows.batch.column(c.name)[row]) for c in columns} for row in range(rows.batch.num_rows)]
    return good + [_rejected_texts(row) for _, row in rows.rejected]


def _rejected_texts(row: RejectedRow) -> dict[str, str | None]:
    return {name: _text(row.columns.column(name)[0]) for name in row.columns.schema.names} | dict(row.others)


def _text(value: pa.Scalar[Any]) -> str | None:
    if not value.is_valid:
        return None
    try:
        return str(value.as_py())
    except (ValueError, OverflowError):  # a time that Python does not have
        return str(value)
