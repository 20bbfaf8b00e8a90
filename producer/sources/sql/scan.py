"""Reads a whole table once, for `producer verify`: every row, in the order of the key, without a paging condition.

A page reader that compares keys wrongly skips rows. A scan must not skip the same rows, so it shares no condition with
the page readers: it reads everything, and finds the positions of a checkpoint by looking for the rows that have these
keys. The database is asked to compare a key only where the row of a position is gone.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from producer.errors import EncodeError
from producer.model import KeyPosition, KeyScalar, Mark, ScannedPage, Split
from producer.salvage import other_rows
from producer.sources.sql import keyset
from producer.sources.sql.keyset import Selection
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column, Query, Rows, ScanningDatabase

_REPLAYED = "in a range that was read again"  # no table has such a column

Key = tuple[KeyScalar, ...]


async def scan(
    database: ScanningDatabase,
    selection: Selection,
    mark: str,
    positions: Sequence[KeyPosition],
    replays: Sequence[Split],
) -> AsyncGenerator[ScannedPage]:
    """See `producer.protocols.ScanningSource`; `mark` is the character around quoted names."""
    query = _everything(replace(selection, reach=""), mark, replays)  # those that no page has, too
    async with database.open_scan() as opened:
        nearest = [await opened.first(_nearest(selection, mark, position.values)) for position in positions]
        wanted = _Wanted(selection, positions, nearest)
        below_all = tuple(Mark(-1, number, False) for number, key in enumerate(nearest) if key is None)
        async with contextlib.aclosing(opened.rows(query)) as parts:
            marks = below_all
            async for part in parts:
                yield _page(part, (*marks, *wanted.marks(part)), with_replays=bool(replays))
                marks = ()


def _everything(selection: Selection, mark: str, replays: Sequence[Split]) -> Query:
    """All rows of the stream in its order."""
    columns, params, types = selection.columns, dict(selection.params), dict(selection.types)
    if replays:
        conditions = []
        for number, split in enumerate(replays):
            condition, more, kinds = _replayed(selection, mark, number, split)
            conditions.append(f"({condition})")
            params |= more
            types |= kinds
        flag = f"CASE WHEN {' OR '.join(conditions)} THEN 1 ELSE 0 END"
        columns = (*columns, Column(_REPLAYED, pa.field(_REPLAYED, pa.int64(), nullable=False), flag, "int"))
    order = ", ".join(f"t.{quote(name, mark)}{' DESC' if down else ''}" for name, down in selection.order)
    query = keyset.rows_query(selection, columns, [], f" ORDER BY {order}")
    return replace(query, params={**query.params, **params}, types={**query.types, **types}, salvage=True)


def _replayed(
    selection: Selection, mark: str, number: int, split: Split
) -> tuple[str, dict[str, KeyScalar], dict[str, str]]:
    """The condition that a replay has read a row, with its parameters and their types."""
    conditions, params, types = [], {}, {}
    if split.between is not None:
        column = selection.table.column(split.between.column)
        name, value = column.compared[0] or _operand(column, mark), column.compared[1]
        for end, operator, bound in (("first", ">=", split.between.first), ("last", "<=", split.between.last)):
            if bound is not None:
                param = f"__replay{number}_{end}"
                conditions.append(f"{name} {column.operator(operator)} {value.format(f':{param}')}")
                params[param], types[param] = bound, column.cast or column.sql_type
    if isinstance(split.upper, KeyPosition):
        prefix = f"__replay{number}_upper"
        conditions.append(_not_after(selection, mark, prefix))
        params |= {f"{prefix}{i}": value for i, value in enumerate(split.upper.values)}
        types |= _types(selection, prefix)
    return " AND ".join(conditions) or "1 = 1", params, types


def _nearest(selection: Selection, mark: str, key: Key) -> Query:
    """The greatest key that is not above `key`."""
    order = ", ".join(f"t.{quote(name, mark)} DESC" for name in selection.order_names)
    query = keyset.rows_query(
        selection, selection.order_columns, [_not_after(selection, mark, "__at")], f" ORDER BY {order} LIMIT 1"
    )
    params = {f"__at{i}": value for i, value in enumerate(key)}
    return replace(query, params={**query.params, **params}, types={**query.types, **_types(selection, "__at")})


def _types(selection: Selection, prefix: str) -> dict[str, str]:
    return {f"{prefix}{i}": column.cast or column.sql_type for i, column in enumerate(selection.order_columns)}


def _not_after(selection: Selection, mark: str, prefix: str) -> str:
    """The key is at most the one in the parameters ``<prefix>0``...: less in one column, and equal in those before.

    By the operators of the order: the usual signs may mean others, or none, under the role's search path.
    """

    def compare(i: int, sign: str) -> str:
        column = selection.order_columns[i]
        return f"{_operand(column, mark)} {column.operator(sign)} :{prefix}{i}"

    last = len(selection.order) - 1
    cases = (
        " AND ".join([*(compare(j, "=") for j in range(i)), compare(i, "<=" if i == last else "<")])
        for i in range(last + 1)
    )
    return f"{compare(0, '<=')} AND ({' OR '.join(cases)})"


def _operand(column: Column, mark: str) -> str:
    return column.operand.format(f"t.{quote(column.name, mark)}")


@dataclass(frozen=True, slots=True)
class _Sought:
    key: Key
    position: int
    exact: bool


class _Wanted:
    """The keys that a scan looks for: those of the positions, and the nearest ones below."""

    def __init__(self, selection: Selection, positions: Sequence[KeyPosition], nearest: Sequence[Key | None]) -> None:
        self._names = selection.order_names
        sought = [_Sought(position.values, number, True) for number, position in enumerate(positions)]
        sought += [_Sought(key, number, False) for number, key in enumerate(nearest) if key is not None]
        self._by_key: dict[Key, list[_Sought]] = {}
        for one in sought:
            self._by_key.setdefault(one.key, []).append(one)
        # Of a column with a guard or a position the key is another value than the one in pages.
        differs = any(column.guard or column.position for column in selection.order_columns)
        self._values = [
            None if differs else _values_of(column.field, [key[i] for key in self._by_key])
            for i, column in enumerate(selection.order_columns)
        ]

    def marks(self, rows: Rows) -> Iterator[Mark]:
        """Where the page has one of the keys, in the order of the rows."""
        if not self._by_key:
            return
        for row in self._candidates(rows):
            with contextlib.suppress(EncodeError):  # a key that no position has
                for one in self._by_key.get(rows.key_at(row), ()):
                    yield Mark(row, one.position, one.exact)

    def _candidates(self, rows: Rows) -> Sequence[int]:
        """The numbers of the rows that may have one of the keys: all rows where Arrow cannot tell."""
        import pyarrow.compute as pc  # here, since it takes 60 ms of the start

        may = np.ones(rows.batch.num_rows, dtype=bool)
        for name, values in zip(self._names, self._values, strict=True):
            if values is not None:
                may &= pc.is_in(rows.batch.column(name), value_set=values).to_numpy(zero_copy_only=False)
        found = other_rows(rows.count, [row for row, _ in rows.rejected])[may]
        return sorted([*found.tolist(), *(row for row, _ in rows.rejected)])


def _values_of(field: pa.Field, values: Sequence[KeyScalar]) -> pa.Array | None:
    """Key values as Arrow has them in pages; None where positions hold them in another form."""
    kind: type = object
    if pa.types.is_string(field.type):
        kind = uuid.UUID if (field.metadata or {}).get(b"avro.logical") == b"uuid" else str
    if not all(isinstance(value, kind) for value in values):
        return None
    plain = [str(value) for value in values] if kind is uuid.UUID else list(values)
    try:
        return pa.array(plain, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _page(rows: Rows, marks: tuple[Mark, ...], *, with_replays: bool) -> ScannedPage:
    if not with_replays:
        return ScannedPage(rows.batch, rows.rejected, marks)
    rejected = tuple((row, replace(one, columns=one.columns.drop_columns([_REPLAYED]))) for row, one in rows.rejected)
    flags = rows.batch.column(_REPLAYED).cast(pa.bool_())
    return ScannedPage(rows.batch.drop_columns([_REPLAYED]), rejected, marks, flags)
