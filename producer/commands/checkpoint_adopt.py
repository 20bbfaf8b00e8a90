"""``producer checkpoint adopt``: carries a checkpoint over to the topic, database or table that is configured now."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.errors import ConfigError

#: Chats of Telegram below this number are channels and supergroups.
_FIRST_CHANNEL = -1_000_000_000_000

if TYPE_CHECKING:
    from producer.config import Config, StreamConfig
    from producer.identity import Difference, Identity
    from producer.model import Dataset, StreamState
    from producer.protocols import CheckpointStore


def add_adopt(actions: Any) -> None:
    """The action and its arguments."""
    text = "carry a stream's checkpoint over to what the configuration names now"
    parser = actions.add_parser(
        "adopt",
        help=text,
        description=f"{text}: another topic, Kafka cluster, database, table or app. The stream continues after the "
        "rows that are done; they are not sent again. Refused where nothing differs, and where the query differs. No "
        "run may use the stream meanwhile.",
    )
    options.add_config(parser)
    parser.add_argument("stream", metavar="STREAM")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = options.load(args)
    stream = options.stream_named(config, args.stream)
    found = asyncio.run(adopt(config, stream))
    if args.json:
        options.say_json({"stream": stream.name, "adopted": [asdict(difference) for difference in found]})
        return 0
    for difference in found:
        options.say(f"{stream.name}: {difference.what} {difference.recorded} -> {difference.now}")
    options.say(f"{stream.name}: the next run continues from the checkpoint")
    return 0


async def adopt(config: Config, stream: StreamConfig) -> Sequence[Difference]:
    """Makes the checkpoint that of the configured stream; what was different. ConfigError where nothing is, or where
    the positions would mean something else."""
    from producer.coordination.units import whole_state

    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(options.open_store(config))
        state = await whole_state(store, stream.name)
        if state is None:
            raise ConfigError(f"stream {stream.name!r} has no checkpoint")
        dataset, identity, replaced = await _described(config, stream, state)
        found = _differences(state, stream, dataset, identity, replaced)
        await _write(store, stream, dataset, identity)
        return found


async def _described(
    config: Config, stream: StreamConfig, state: StreamState
) -> tuple[Dataset, Identity, Sequence[Difference]]:
    """The table as it is, what the checkpoint will belong to, and whether another table has got the name."""
    from producer.errors import TableReplacedError
    from producer.identity import Difference
    from producer.kafka import cluster_id
    from producer.parts import identity_of, make_source
    from producer.protocols import ReplaceableSource

    source = make_source(config, stream.source)
    try:
        await source.start()
        dataset = await source.describe(stream)
        replaced: list[Difference] = []
        if isinstance(source, ReplaceableSource):
            try:
                await source.refuse_replaced(stream, state.checkpoints)
            except TableReplacedError:
                replaced.append(Difference("table", "the one that was read", "another one of the name"))
    finally:
        await options.close(source)
    return dataset, identity_of(config, stream, dataset, await cluster_id(config.kafka)), replaced


def _differences(
    state: StreamState,
    stream: StreamConfig,
    dataset: Dataset,
    identity: Identity,
    replaced: Sequence[Difference],
) -> Sequence[Difference]:
    """ConfigError where there are none, or where the query is another one as well."""
    from producer.identity import differences

    found = [*differences(state.identity, identity), *replaced]
    same_query = state.fingerprint == dataset.fingerprint(stream.traversal)
    if not same_query and (state.identity is None or state.identity.query != identity.query):
        raise ConfigError(
            f"the checkpoint of stream {stream.name!r} was made by another query: its columns, where, key, order, "
            "traversal or chat differ, so its positions mean something else",
            hint=f"put the configuration back, or start over with: producer checkpoint reset CONFIG {stream.name}",
        )
    if any(difference.what == "account" for difference in found) and int(identity.facts["chat"]) > _FIRST_CHANNEL:
        raise ConfigError(
            f"the checkpoint of stream {stream.name!r} belongs to another account, which numbers the messages of chat "
            f"{identity.facts['chat']} in its own way: only channels and supergroups have the same numbers for all",
            hint=f"use that account, or start over with: producer checkpoint reset CONFIG {stream.name}",
        )
    if not found:
        raise ConfigError(
            f"the checkpoint of stream {stream.name!r} belongs to this configuration already: nothing differs"
        )
    return found


async def _write(store: CheckpointStore, stream: StreamConfig, dataset: Dataset, identity: Identity) -> None:
    """The stream's own state and those of its units, each under a claim that ends whatever runs it."""
    from producer.coordination.units import unit_names
    from producer.model import without_table

    for name in (*await unit_names(store, stream.name), stream.name):
        if await store.load(name) is None:
            continue
        epoch = await store.claim(name)
        state = await store.load(name)
        if state is not None:
            fingerprint = dataset.fingerprint(stream.traversal)
            checkpoints = tuple(without_table(checkpoint) for checkpoint in state.checkpoints)
            await store.begin(
                replace(
                    state,
                    epoch=epoch,
                    fingerprint=fingerprint,
                    identity=identity.after(None),
                    checkpoints=checkpoints,
                )
            )
