"""Owns the planning of splits: the quantiles of a key, so that each split has about as many rows as the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import ConfigError
from producer.model import Dataset, KeyPosition, KeyScalar, Position, Split
from producer.sources.sql import keyset
from producer.sources.sql.keyset import Selection
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column, Database, Session
from producer.traversal import interpolate, key_splits, key_values, split_count, start_of

_COUNT = Column("n", pa.field("n", pa.int64(), nullable=False), "count(*)", "bigint")


async def count(session: Session, selection: Selection) -> int:
    """The exact number of rows that the stream reads now."""
    ((rows,),) = await session.keys(keyset.rows_query(selection, (_COUNT,), []))
    return int(str(rows))


async def refuse_null_keys(session: Session, database: Database, selection: Selection) -> None:
    """ConfigError where a column of the order holds a null: such rows would never be reached by comparison."""
    nullable = [column for column in selection.order_columns if column.field.nullable]
    for column in nullable:
        condition = f"t.{quote(column.name, database.mark)} IS NULL"
        probe = dataclasses.replace(_COUNT, select="1")
        if await session.keys(keyset.rows_query(selection, (probe,), [condition], " LIMIT 1")):
            raise ConfigError(
                f"table {'.'.join(selection.table.path)!r}: key column {column.name!r} holds nulls",
                hint="choose a key without nulls, or leave those rows out by where",
            )


async def plan(
    session: Session, database: Database, selection: Selection, stream: StreamConfig, rows: int | None
) -> tuple[Split, ...]:
    """Up to ``max_parallel`` splits of about equal rows; for a snapshot the last one ends at the greatest key."""
    open_end = stream.mode != "snapshot"
    greatest = await session.keys(keyset.edge_query(selection, database.mark, greatest=True))
    if not greatest:
        return key_splits((), open_end=open_end)
    pieces = split_count(rows, stream.page_size, stream.max_parallel)
    ends = [KeyPosition(greatest[0])]
    if pieces > 1:
        found = await _quantiles(session, database, selection, pieces, rows)
        ends = [*(KeyPosition(key) for key in found[:-1]), ends[0]]
    return key_splits(ends, open_end=open_end)


async def _quantiles(
    session: Session, database: Database, selection: Selection, pieces: int, rows: int | None
) -> Sequence[tuple[KeyScalar, ...]]:
    """`pieces` keys that end as many parts of about equal rows; the last is not needed and may be missing."""
    source = database.sample(selection.table, rows)
    if source is not None:
        found = await session.keys(keyset.quantile_query(selection, pieces, database.mark, source))
        if len(found) == pieces:
            return found
    step = max(1, await count(session, selection) // pieces)
    ends: list[tuple[KeyScalar, ...]] = []
    for _ in range(pieces - 1):
        after = ends[-1] if ends else None
        query = keyset.step_query(selection, after, step, database.mark, database.row_values)
        ends += await session.keys(query)
    return [*ends, ends[-1]] if ends else []


async def remaining(
    session: Session,
    database: Database,
    selection: Selection,
    split: Split,
    position: Position | None,
    dataset: Dataset,
) -> int | None:
    """The planner's guess of the rows after `position`; for an integer key without a planner, by its distance."""
    width = len(selection.order)
    start = key_values(start_of(split, position), width)
    end = key_values(split.upper, width)
    if database.has_planner:
        query = keyset.key_query(selection, start, end, None, mark=database.mark, row_values=database.row_values)
        estimate = await session.estimate(query)
        return None if estimate is None else estimate[0]
    if dataset.rows_estimate is None or width != 1:
        return None
    least = await session.keys(keyset.edge_query(selection, database.mark, greatest=False))
    greatest = await session.keys(keyset.edge_query(selection, database.mark, greatest=True))
    if not least or not greatest:
        return 0
    low, high = start[0] if start else least[0][0], end[0] if end else greatest[0][0]
    return interpolate(low, high, least[0][0], greatest[0][0], dataset.rows_estimate)
