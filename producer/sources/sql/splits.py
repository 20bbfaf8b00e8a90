"""Owns the planning of splits: the quantiles of a key, so that each split has about as many rows as the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import ConfigError
from producer.model import Dataset, KeyPosition, Position, Split
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
    greatest = await session.keys(_greatest(selection, database.mark))
    if not greatest:
        return key_splits((), open_end=open_end)
    pieces = split_count(rows, stream.page_size, stream.max_parallel)
    ends = [KeyPosition(greatest[0])]
    if pieces > 1:
        found = await _quantiles(session, database, selection, pieces, rows)
        ends = [*(KeyPosition(key) for key in found[:-1]), ends[0]]
    return key_splits(ends, open_end=open_end)


def _greatest(selection: Selection, mark: str) -> keyset.Query:
    tail = keyset.descending(selection, mark) + " LIMIT 1"
    return keyset.rows_query(selection, selection.order_columns, [], tail)


async def _quantiles(
    session: Session, database: Database, selection: Selection, pieces: int, rows: int | None
) -> Sequence[tuple[object, ...]]:
    """`pieces` keys that end as many equal parts of the rows, the last being the greatest that was looked at."""
    sample = database.sample(selection.table, rows)
    if sample is not None:
        found = await session.keys(keyset.quantile_query(selection, pieces, database.mark, sample))
        if len(found) == pieces:
            return found
    return await session.keys(keyset.quantile_query(selection, pieces, database.mark, None))


async def remaining(
    session: Session, database: Database, selection: Selection, split: Split, position: Position | None, dataset: Dataset
) -> int | None:
    """The planner's guess of the rows after `position`; for an integer key without a planner, by its distance."""
    width = len(selection.order)
    start = key_values(start_of(split, position), width)
    end = key_values(split.upper, width)
    query = keyset.key_query(selection, start, end, None, mark=database.mark, row_values=database.row_values)
    estimate = await session.estimate(query)
    if estimate is not None:
        return estimate[0]
    if start and end and isinstance(start[0], int) and isinstance(end[0], int) and dataset.rows_estimate is not None:
        return interpolate(0, end[0], start[0], dataset.rows_estimate)
    return None
