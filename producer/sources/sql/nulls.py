"""Rows with NULL in a column of the key or order: whether there can be any, how many there are, and which.

No comparison with NULL is true, so paging by key never reaches such a row. Pages leave them out on purpose, whatever
the traversal, and the queries here find them. Where the database enforces NOT NULL on all of these columns, nothing is
asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from producer.config import DropConfig, MaskConfig, StreamConfig
from producer.errors import NullKeyError
from producer.model import NullKeys, NullRows, RejectedRow, Traversal
from producer.sources.sql import keyset
from producer.sources.sql.keyset import Selection
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column, Database, Rows, Session

#: A row without any value in its key is named by so many of its other columns.
_OTHER_COLUMNS = 3
_DIGEST_BYTES = 8


def nullable_columns(selection: Selection, traversal: Traversal) -> tuple[Column, ...]:
    """The columns in which a NULL keeps a row off the topic, and which may hold one: those of the order, or for OFFSET,
    which reads rows by counting them, those of the key."""
    names = selection.key if traversal == "OFFSET" else selection.order_names
    columns = (selection.table.column(name) for name in names)
    return tuple(column for column in columns if _may_be_null(selection, column))


def _may_be_null(selection: Selection, column: Column) -> bool:
    """A view enforces nothing, whatever its columns seem to be."""
    return selection.table.is_view or bool(column.field.nullable)


def without_null_keys(selection: Selection, traversal: Traversal, mark: str) -> Selection:
    """`selection` as pages have it: without the rows that have NULL in their key."""
    names = (f"t.{quote(column.name, mark)}" for column in nullable_columns(selection, traversal))
    return replace(selection, reach=" AND ".join(f"{name} IS NOT NULL" for name in names))


async def count(
    session: Session, database: Database, selection: Selection, stream: StreamConfig, named: int
) -> NullKeys:
    """The rows that `without_null_keys` leaves out. Names `named` of them."""
    holding: dict[str, int] = {}
    names: list[str] = []
    for column, part in _parts(selection, stream.traversal, database.mark):
        query = keyset.count_query(part, None, None, mark=database.mark, row_values=database.row_values)
        ((found,),) = await session.keys(query)
        if int(str(found)):
            holding[column.name] = int(str(found))
            if len(names) < named:
                names += await _names(session, part, named - len(names), stream)
    hint = _remedy(selection, stream, next(iter(holding))) if holding else ""
    return NullKeys(holding, tuple(names), hint)


def _remedy(selection: Selection, stream: StreamConfig, name: str) -> str:
    if stream.mode == "timestamp" and name == selection.order_names[0] and name not in selection.key:
        return (
            f"a row that was never changed has no time: read a view with coalesce({name}, ...), or leave such rows out "
            f"by where: {name} IS NOT NULL"
        )
    return (
        f"give these rows a value, choose a key without NULL, leave them out by where: {name} IS NOT NULL, or set "
        "on_bad_record: dead_letter"
    )


def _parts(selection: Selection, traversal: Traversal, mark: str) -> list[tuple[Column, Selection]]:
    """For each column the rows in which it is the first one with a NULL. An index on the column finds these."""
    columns = nullable_columns(selection, traversal)
    names = [f"t.{quote(column.name, mark)}" for column in columns]
    absent = [column.absent or f"{name} IS NULL" for column, name in zip(columns, names, strict=True)]
    everything = replace(selection, reach="")
    return [
        (
            column,
            keyset.also(
                everything,
                " AND ".join([absent[i], *(f"{before} IS NOT NULL" for before in names[:i])]),
            ),
        )
        for i, column in enumerate(columns)
    ]


# --- rows ----------------------------------------------------------------------------------------------------------


async def find_new(
    session: Session,
    database: Database,
    selection: Selection,
    stream: StreamConfig,
    known: frozenset[bytes],
    *,
    limit: int,
    most: int,
) -> NullRows:
    """The digests of all rows that `without_null_keys` leaves out, and up to `limit` rows that are not `known` by them.
    NullKeyError where there are more than `most`."""
    digests: set[bytes] = set()
    new: list[tuple[bytes, RejectedRow]] = []
    for column, part in _parts(selection, stream.traversal, database.mark):
        identity = _identity(part)
        if identity:
            found = await _find_by_identity(session, database, part, identity, known, limit - len(new), most)
        else:
            found = await _find_by_content(session, part, known, limit - len(new), most)
        if found is None or len(digests | found.digests) > most:
            raise _too_many(selection, stream, column, most)
        digests |= found.digests
        new += [(digest, replace(row, error=_error(column, digest))) for digest, row in found.new]
    return NullRows(frozenset(digests), tuple(new))


def _too_many(selection: Selection, stream: StreamConfig, column: Column, most: int) -> NullKeyError:
    what = f"more than {most:,} rows have NULL in column {column.name!r}"
    return NullKeyError(
        f"stream {stream.name!r}: {what} of the key or order, too many for dead letters",
        field=column.name,
        hint=_remedy(selection, stream, column.name),
    )


def _error(column: Column, digest: bytes) -> NullKeyError:
    """`key` names the row in the dead letters where its own key cannot."""
    reason = f"column {column.name!r} is NULL, and it is needed to tell the table's rows apart and to order them"
    return NullKeyError(reason, key=str(uuid.uuid5(uuid.NAMESPACE_OID, digest.hex())), field=column.name)


def _identity(selection: Selection) -> tuple[str, ...]:
    """Columns of the order that tell also these rows apart; () where no unique index without NULL says so."""
    table = selection.table
    for unique in () if table.inherited else table.unique:
        if set(unique) <= set(selection.order_names) and not any(
            _may_be_null(selection, table.column(name)) for name in unique
        ):
            return unique
    return ()


async def _find_by_identity(
    session: Session,
    database: Database,
    part: Selection,
    identity: tuple[str, ...],
    known: frozenset[bytes],
    limit: int,
    most: int,
) -> NullRows | None:
    """Reads the rows' identities, and whole rows only between the first and the last one that is not known. None where
    there are too many."""
    ordered = replace(part, order=tuple((name, False) for name in identity))
    form = partial(keyset.key_query, mark=database.mark, row_values=database.row_values)
    narrow = replace(ordered, columns=tuple(part.table.column(name) for name in identity))
    rows = await session.fetch(replace(form(narrow, None, None, most + 1), salvage=True))
    if rows.cut or rows.count > most:
        return None
    keys = [rows.key_at(row) for row in range(rows.count)]
    digests = [_digest(key) for key in keys]
    unknown = [place for place, digest in enumerate(digests) if digest not in known]
    if not unknown or limit <= 0:
        return NullRows(frozenset(digests))
    first = unknown[0]
    last = max(place for place in unknown if place < first + limit)
    whole = replace(ordered, columns=tuple(map(_with_null, part.columns)))
    query = form(whole, keys[first - 1] if first else None, keys[last], limit)
    rows = await session.fetch(replace(query, salvage=True))
    found = [(_digest(rows.key_at(place)), row) for place, row in enumerate(_rows_apart(rows))]
    return NullRows(frozenset(digests), tuple((digest, row) for digest, row in found if digest not in known))


async def _find_by_content(
    session: Session, part: Selection, known: frozenset[bytes], limit: int, most: int
) -> NullRows | None:
    """Rows that nothing tells apart are known by all of their values; equal ones are numbered. None where there are too
    many, or too many bytes to compare at each poll."""
    columns = tuple(map(_with_null, part.columns))
    query = keyset.rows_query(part, columns, [], f" LIMIT {most + 1:d}")
    rows = await session.fetch(replace(query, key=(), salvage=True))
    if rows.cut or rows.count > most:
        return None
    return await asyncio.to_thread(_by_content, rows, known, limit)


def _by_content(rows: Rows, known: frozenset[bytes], limit: int) -> NullRows:
    seen: Counter[str] = Counter()
    digests: list[bytes] = []
    apart = _rows_apart(rows)
    for row in apart:
        text = repr(sorted(_texts(row).items()))
        seen[text] += 1
        digests.append(_digest((text, seen[text])))
    new = [(digest, row) for digest, row in zip(digests, apart, strict=True) if digest not in known]
    return NullRows(frozenset(digests), tuple(new[: max(0, limit)]))


def _digest(values: tuple[Any, ...]) -> bytes:
    return hashlib.blake2b(repr(values).encode(errors="surrogateescape"), digest_size=_DIGEST_BYTES).digest()


def _rows_apart(rows: Rows) -> list[RejectedRow]:
    """Each row on its own, in the order of the result; those that could not be read whole as they were set aside."""
    unreadable = dict(rows.rejected)
    places = iter(range(rows.batch.num_rows))
    return [
        unreadable[number] if number in unreadable else RejectedRow(rows.batch.slice(next(places), 1), {}, _UNNAMED)
        for number in range(rows.count)
    ]


_UNNAMED = NullKeyError("a column of the key is NULL")  # until the column is known


# --- names ---------------------------------------------------------------------------------------------------------


async def _names(session: Session, part: Selection, most: int, stream: StreamConfig) -> list[str]:
    """Which the first rows are, for a person; nothing where the stream's transforms conceal some columns."""
    if any(isinstance(transform, MaskConfig | DropConfig) for transform in stream.transforms):
        return []
    keys = [_with_null(column) for column in part.order_columns]
    others = [_with_null(c) for c in part.columns if c.name not in part.order_names][:_OTHER_COLUMNS]
    columns = tuple(keys + others)
    query = keyset.rows_query(part, columns, [], f" LIMIT {most:d}")
    rows = await session.fetch(replace(query, key=(), salvage=True))
    return [_name(_texts(row), keys, others) for row in _rows_apart(rows)]


def _with_null(column: Column) -> Column:
    return replace(column, field=column.field.with_nullable(True))


def _name(row: dict[str, str | None], keys: Sequence[Column], others: Sequence[Column]) -> str:
    """``a=1, b=NULL``; with other columns where the key has no value at all."""
    shown = keys if any(row[column.name] is not None for column in keys) else [*keys, *others]
    return ", ".join(f"{c.name}={'NULL' if row[c.name] is None else row[c.name]}" for c in shown)


def _texts(row: RejectedRow) -> dict[str, str | None]:
    """The values by column, as text."""
    return {name: _text(row.columns.column(name)[0]) for name in row.columns.schema.names} | dict(row.others)


def _text(value: pa.Scalar[Any]) -> str | None:
    if not value.is_valid:
        return None
    try:
        return str(value.as_py())
    except (ValueError, OverflowError):  # a time that Python does not have
        return str(value)
