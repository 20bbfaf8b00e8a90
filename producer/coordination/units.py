"""Owns the view of a stream as one, whether its state is kept whole or in the units of shared work."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from producer.model import StreamState, split_name, unit_partition
from producer.protocols import CheckpointStore


def stream_of(name: str) -> str:
    """The stream that a store's name stands for: itself, or the one that the unit is of."""
    return name if unit_partition(name) is None else name.rpartition("/")[0]


async def stream_names(store: CheckpointStore) -> Sequence[str]:
    """The streams with a state, each once, sorted."""
    return sorted({stream_of(name) for name in await store.streams()})


async def unit_names(store: CheckpointStore, stream: str) -> Sequence[str]:
    """The stream's units that have splits; none for a stream that is kept whole."""
    names = [name for name in await store.streams() if name != stream and stream_of(name) == stream]
    return sorted(names, key=lambda name: unit_partition(name) or 0)


async def whole_state(store: CheckpointStore, stream: str) -> StreamState | None:
    """The stream's state, that of its units put together: split ids are then ``<unit>.<split>``."""
    state, names = await store.load(stream), await unit_names(store, stream)
    if not names:
        return state
    units = [unit for unit in await asyncio.gather(*(store.load(name) for name in names)) if unit is not None]
    checkpoints = tuple(
        replace(c, split=replace(c.split, id=split_name(str(unit_partition(unit.stream)), c.split.id)))
        for unit in units
        for c in unit.checkpoints
    )
    newest = max(units, key=lambda unit: unit.updated_at)
    identity = newest.identity if state is None else state.identity  # a unit has that of the plan
    paused = any(unit.paused for unit in units)
    return replace(newest, stream=stream, checkpoints=checkpoints, paused=paused, identity=identity)


async def owners(store: CheckpointStore, stream: str) -> Mapping[str, int]:
    """The workers that claimed the stream's units last, with how many splits each has still to read."""
    found: Counter[str] = Counter()
    for name in await unit_names(store, stream):
        unit = await store.load(name)
        if unit is not None and unit.owner is not None:
            found[unit.owner] += sum(not c.done for c in unit.checkpoints)
    return found


async def reset_whole(store: CheckpointStore, stream: str) -> bool:
    """Forgets the stream and its units; False if there was nothing."""
    # The stream's own state is last: while it is there, a process that starts finds the units it speaks of.
    found = [await store.reset(name) for name in (*await unit_names(store, stream), stream)]
    return any(found)
