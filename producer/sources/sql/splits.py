"""Owns the planning of splits: the quantiles of a key, so that each split has about as many rows as the next."""

from __future__ import annotations

import time
from collections.abc import Sequence

from producer import holes
from producer.config import StreamConfig
from producer.errors import ProducerError
from producer.model import Dataset, KeyPosition, KeyScalar, Position, Split
from producer.sources.sql import keyset, tail
from producer.sources.sql.keyset import Selection
from producer.sources.sql.table import Database, Session
from producer.traversal import interpolate, key_splits, key_values, split_count, start_of

#: Into how many steps a walk cuts each piece: it aims at so many, and is content with as few as the least.
_STEPS, _LEAST_STEPS = 6, 4
_GUESSED_ROWS = 10_000

#: A key's values in the order of the traversal; None where a range is open.
Key = tuple[KeyScalar, ...] | None


async def count(
    session: Session, database: Database, selection: Selection, lower: Key = None, upper: Key = None
) -> int:
    """The exact number of rows that the stream has now, in a range of keys."""
    query = keyset.count_query(selection, lower, upper, mark=database.mark, row_values=database.row_values)
    ((rows,),) = await session.keys(query)
    return int(str(rows))


async def plan(
    session: Session, database: Database, selection: Selection, stream: StreamConfig, rows: int | None
) -> tuple[Split, ...]:
    """For a snapshot up to ``max_parallel`` splits of about equal rows, the last one up to the greatest key; to be
    followed, an open one after these; a tail has the open one only."""
    if stream.mode == "snapshot":
        greatest = await session.keys(keyset.edge_query(selection, database.mark, greatest=True))
        end, ledger = KeyPosition(greatest[0]) if greatest else None, None
    else:
        followed = await tail.followed(selection, database, stream)
        end, ledger = await tail.beginning(session, database, followed, stream, time.time())
        selection = tail.growing(selection, database)
    detail = None if ledger is None else holes.to_json(ledger)
    if stream.mode in ("tail", "timestamp"):
        return (Split("0", end if stream.start == "latest" else None, detail=detail),)
    if end is None:
        return (Split("0", detail=detail),)
    pieces = split_count(rows, stream.page_size, stream.max_parallel)
    inner: Sequence[tuple[KeyScalar, ...]] = ()
    if pieces > 1:
        upper = key_values(end, len(selection.order))  # rows that come meanwhile are no part of it
        inner = await _sampled(session, database, selection, pieces, rows, None, upper)
        inner = inner or await _walked(session, database, selection, pieces, rows, None, upper)
    bounded = key_splits([*(KeyPosition(key) for key in inner), end], open_end=False)
    return bounded if ledger is None else (*bounded, Split(str(len(bounded)), end, detail=detail))


async def _sampled(
    session: Session,
    database: Database,
    selection: Selection,
    pieces: int,
    rows: int | None,
    lower: Key = None,
    upper: Key = None,
) -> Sequence[tuple[KeyScalar, ...]]:
    """The `pieces - 1` inner quantiles of the keys in a range, from a sample of the table's `rows` rows.

    None of them where the database has no sampling, or the sample too few rows within the range.
    """
    source = database.sample(selection.table, rows)
    if source is None:
        return ()
    query = keyset.quantile_query(
        selection, pieces, source, lower, upper, mark=database.mark, row_values=database.row_values
    )
    found = await session.keys(query)
    return found[:-1] if len(found) == pieces else ()


async def _walked(
    session: Session,
    database: Database,
    selection: Selection,
    pieces: int,
    rows: int | None,
    lower: Key = None,
    upper: Key = None,
) -> Sequence[tuple[KeyScalar, ...]]:
    """The same by walking the index once, which counts as it goes: a guess of the rows tells only how long the first
    steps are. A view may have no index, and each step sort it: its rows are counted, and the steps are few."""
    steps, least = _STEPS, _LEAST_STEPS
    if selection.table.is_view:
        rows, steps, least = await count(session, database, selection, lower, upper), 1, 1
    step = max(1, (_GUESSED_ROWS if rows is None else rows) // (steps * pieces))
    while True:
        keys: list[tuple[KeyScalar, ...]] = []  # of every `step`-th row
        while found := await _stepped(session, database, selection, keys[-1] if keys else lower, step, upper):
            keys += found
            if len(keys) == 2 * steps * pieces:
                keys, step = keys[1::2], 2 * step
        if len(keys) >= least * pieces or step == 1:
            break
        step = max(1, step * (len(keys) + 1) // (2 * steps * pieces))
    cuts = (round((len(keys) + 0.5) * piece / pieces) for piece in range(1, pieces))
    return [keys[cut - 1] for cut in cuts if 0 < cut <= len(keys)]


async def _stepped(
    session: Session, database: Database, selection: Selection, after: Key, step: int, upper: Key
) -> list[tuple[KeyScalar, ...]]:
    """The key of the `step`-th row after `after`; none where there are fewer."""
    query = keyset.step_query(selection, after, step, mark=database.mark, row_values=database.row_values, upper=upper)
    return await session.keys(query)


async def divide(
    session: Session,
    database: Database,
    selection: Selection,
    dataset: Dataset,
    split: Split,
    position: Position | None,
) -> KeyPosition | None:
    """The key in the middle of the rows of `split` after `position`; None where there is none between its ends."""
    width = len(selection.order)
    lower, upper = key_values(start_of(split, position), width), key_values(split.upper, width)
    inner = await _sampled(session, database, selection, 2, dataset.rows_estimate, lower, upper)
    inner = inner or await _walked(session, database, selection, 2, dataset.rows_estimate, lower, upper)
    if not inner or inner[0] in (lower, upper):
        return None
    return KeyPosition(inner[0])


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
        try:
            estimate = await session.estimate(query)
        except ProducerError:  # what lasts, the reading meets as well
            return None
        return None if estimate is None else estimate[0]
    if dataset.rows_estimate is None or width != 1:
        return None
    least = await session.keys(keyset.edge_query(selection, database.mark, greatest=False))
    greatest = await session.keys(keyset.edge_query(selection, database.mark, greatest=True))
    if not least or not greatest:
        return 0
    low, high = start[0] if start else least[0][0], end[0] if end else greatest[0][0]
    return interpolate(low, high, least[0][0], greatest[0][0], dataset.rows_estimate)
