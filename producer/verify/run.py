"""Runs a verification: opens both sides, reads them concurrently, compares, and names what differs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from producer.config import Config, StreamConfig
from producer.coordination.units import whole_state
from producer.errors import ConfigError, ProducerError
from producer.model import Dataset, Split
from producer.ownership import refuse_other_query
from producer.parts import identity_of, make_registry, make_source, make_store, past_schemas, settled_schemas
from producer.protocols import CheckpointStore, ScanningSource, Source
from producer.verify.compare import RangeCounts, Side, compare
from producer.verify.datum import differing_fields
from producer.verify.letters import read_dead_letters
from producer.verify.ranges import Piece, pieces_of
from producer.verify.report import NAMED, Range, Verified
from producer.verify.source_side import Counts, SourceSide
from producer.verify.topic_side import TopicSide, leaves


async def verify(config: Config, stream: StreamConfig, counts: Counts) -> Verified:
    """Reads both sides and compares them. ProducerError where one of them cannot be read."""
    from producer.kafka import topic_partitions

    started = time.monotonic()
    async with AsyncExitStack() as stack:
        source, store, registry = make_source(config, stream.source), make_store(config), make_registry(config)
        parts: list[Any] = [source, store, *([registry] if registry else [])]
        for part in parts:
            stack.push_async_callback(part.close)
            await part.start()
        partitions = await topic_partitions(config.kafka, stream.topic)
        if partitions is None:
            raise ConfigError(f"topic {stream.topic!r} does not exist", hint=f"run stream {stream.name!r} first")
        dataset = await source.describe(stream)
        pieces = await _pieces(config, store, source, stream, dataset)
        letters = await read_dead_letters(config.kafka, stream)
        schemas = await settled_schemas(stream, dataset, past_schemas(config, registry))
        rows = SourceSide(config, source, stream, dataset, pieces, letters, schemas, counts)
        records = TopicSide(config, stream, rows.schemas, registry, partitions, counts)
        ours, theirs = stack.enter_context(Side()), stack.enter_context(Side())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(rows.hash_into(ours))
                group.create_task(records.hash_into(theirs))
        except BaseExceptionGroup as errors:
            raise min(leaves(errors), key=lambda error: not isinstance(error, ProducerError)) from None
        places = rows.ranges.places()
        comparison = await asyncio.to_thread(compare, ours, theirs, NAMED, places)
        unsent = rows.settle(comparison, places)
        found = Verified(stream.name, stream.topic, comparison, _ranges(rows.ranges.pieces, comparison.ranges))
        found.letters_without_key, found.unscannable = letters.without_key, rows.unscannable
        if not comparison.agrees:
            await _name(found, rows, records)
            found.missing = [*unsent, *found.missing][:NAMED]
        found.seconds = time.monotonic() - started
        return found


async def _pieces(
    config: Config, store: CheckpointStore, source: Source, stream: StreamConfig, dataset: Dataset
) -> list[Piece]:
    """The pieces of the checkpoint; without one all rows are expected, since nothing says how far a run has come."""
    state = await whole_state(store, stream.name)
    if state is not None:
        from producer.kafka import cluster_id

        identity = identity_of(config, stream, dataset, await cluster_id(config.kafka))
        refuse_other_query(state, stream, dataset, identity)
        return [piece for checkpoint in state.checkpoints for piece in pieces_of(checkpoint)]
    if isinstance(source, ScanningSource):
        return [Piece(Split("0"), None, True)]
    plain = stream.model_copy(update={"mode": "snapshot"})
    return [Piece(split, None, True) for split in await source.plan(plain, dataset)]


def _ranges(pieces: Sequence[Piece], counts: RangeCounts) -> list[Range]:
    """Those whose rows must be there. Those of no piece, and of replays, only where they have rows."""
    ends = [(piece.split.id, piece.after, piece.through) for piece in pieces]
    always = [piece.needed and not piece.split.is_replay for piece in pieces]
    return [
        Range(
            name,
            after,
            through,
            int(counts.rows[number]),
            int(counts.missing[number]),
            int(counts.differing[number]),
            int(counts.source_checksum[number]),
            int(counts.topic_checksum[number]),
        )
        for number, (name, after, through) in enumerate([*ends, ("", None, None), ("replays", None, None)])
        if counts.rows[number] or (number < len(pieces) and always[number])
    ]


async def _name(found: Verified, rows: SourceSide, records: TopicSide) -> None:
    """Reads both sides once more for the keys that differ: a hash does not tell what it was made of."""
    comparison = found.comparison
    ours = await rows.find(comparison.missing_keys | comparison.differing_keys)
    theirs = await records.find(comparison.unexpected_keys | comparison.differing_keys)
    found.missing = sorted(ours[key][0] for key in comparison.missing_keys & ours.keys())
    found.unexpected = sorted(theirs[key][0] for key in comparison.unexpected_keys & theirs.keys())
    found.differing = sorted(
        f"{ours[key][0]}{differing_fields(rows.schemas.value, ours[key][1], theirs[key][1])}"
        for key in comparison.differing_keys & ours.keys() & theirs.keys()
    )
