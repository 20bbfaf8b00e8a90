"""Owns ``producer checkpoint copy``: streams' states from one kind of store to another."""

from __future__ import annotations

import argparse
import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.errors import CheckpointConflictError, ConfigError
from producer.identity import Identity, differences

if TYPE_CHECKING:
    from producer.config import Config
    from producer.model import StreamState
    from producer.protocols import CheckpointStore

_TYPES = ("file", "kafka", "postgres", "redis")


def add_copy(actions: Any) -> None:
    """The action and its arguments."""
    text = "copy streams' checkpoints to another kind of store"
    parser = actions.add_parser(
        "copy",
        help=text,
        description=f"{text}. One side is the configured store; the other one is of the type that is given, with "
        "--path or --url. No run may use the streams meanwhile.",
    )
    options.add_config(parser)
    parser.add_argument("streams", metavar="STREAM", nargs="*", help="default: all that have a checkpoint")
    parser.add_argument("--from", dest="source", choices=_TYPES, help="default: the configured store")
    parser.add_argument("--to", dest="target", choices=_TYPES, help="default: the configured store")
    parser.add_argument("--path", help="the folder of the store that is not configured, of type file")
    parser.add_argument("--url", help="its URL, of type postgres or redis; $NAME is read from the environment")
    parser.add_argument("--force", action="store_true", help="also over a newer checkpoint, or one of another query")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = options.load(args)
    source, target = _sides(args, config)
    return asyncio.run(_copy(args, source, target))


def _sides(args: argparse.Namespace, config: Config) -> tuple[Config, Config]:
    """The configuration with each side's store. A type that is configured means the configured store."""
    configured = config.checkpoints.type
    names = [args.source or configured, args.target or configured]
    if configured not in names:
        raise ConfigError(f"neither side is the configured store, which is of type {configured}")
    others = [name for name in names if name != configured]
    if not others:
        if args.path is None and args.url is None:
            raise ConfigError("both sides are the configured store", hint="name the other one with --from or --to")
        # Two of one type: the one that is named without the other is the one that --path or --url is for.
        other = _other(args, config, configured)
        return (config, other) if args.target is not None else (other, config)
    other = _other(args, config, others[0])
    return (config, other) if names[0] == configured else (other, config)


def _other(args: argparse.Namespace, config: Config, kind: str) -> Config:
    from pydantic import SecretStr

    from producer.config import (
        FileCheckpointsConfig,
        KafkaCheckpointsConfig,
        PostgresCheckpointsConfig,
        RedisCheckpointsConfig,
    )

    url = SecretStr(os.path.expandvars(args.url or ""))
    settings: Any
    match kind, args.path, args.url:
        case "file", str(path), None:
            settings = FileCheckpointsConfig(path=path)
        case "kafka", None, None:
            settings = KafkaCheckpointsConfig(type="kafka")
        case "postgres", None, str():
            settings = PostgresCheckpointsConfig(type="postgres", url=url)
        case "redis", None, str():
            settings = RedisCheckpointsConfig(type="redis", url=url)
        case _:
            needs = {"file": "--path", "postgres": "--url", "redis": "--url"}.get(kind, "neither --path nor --url")
            raise ConfigError(f"a store of type {kind} takes {needs}")
    return config.model_copy(update={"checkpoints": settings})


async def _copy(args: argparse.Namespace, source_config: Config, target_config: Config) -> int:
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(options.open_store(source_config))
        target = await stack.enter_async_context(options.open_store(target_config))
        found = await source.streams()
        if missing := sorted(set(args.streams) - set(found)):
            known = ", ".join(found) or "none"
            raise ConfigError(f"stream {missing[0]!r} has no checkpoint; streams with one: {known}")
        names = args.streams or found
        app = source_config.app
        states = [await _copy_one(source, target, name, app=app, force=args.force) for name in names]
    kinds = f"{source_config.checkpoints.type} to {target_config.checkpoints.type}"
    if args.json:
        options.say_json([{"stream": s.stream, "epoch": s.epoch, "splits": len(s.checkpoints)} for s in states])
        return 0
    for state in states:
        options.say(f"{state.stream}: {len(state.checkpoints)} splits copied from {kinds}, epoch {state.epoch}")
    if not states:
        options.say("no checkpoints to copy")
    return 0


async def _copy_one(
    source: CheckpointStore, target: CheckpointStore, stream: str, *, app: str, force: bool
) -> StreamState:
    from producer.ownership import refuse_other_place

    refuse_other_place(await source.load(stream), app=app)  # before the claim, which would end the other app's run
    await source.claim(stream)  # refused while a runner is at it, or else that runner can commit no more
    state = await source.load(stream)
    if state is None:
        raise ConfigError(f"stream {stream!r} has no checkpoint any more")
    there = await target.load(stream) if not force else None
    if there is not None:
        _refuse_older(state, there)
    # Epochs rise over both stores, so that no runner of either has a newer one.
    copied = replace(state, epoch=await target.claim(stream, state.epoch))
    await target.begin(copied)
    return copied


def _refuse_older(state: StreamState, there: StreamState) -> None:
    hint = "--force overwrites it"
    if there.fingerprint != state.fingerprint:
        raise CheckpointConflictError(
            f"the target's checkpoint of stream {state.stream!r} was made by another query", hint=hint
        )
    if found := differences(there.identity, state.identity or Identity()):
        raise CheckpointConflictError(
            f"the target's checkpoint of stream {state.stream!r} belongs to something else: "
            + "; ".join(str(difference) for difference in found),
            hint=hint,
        )
    ours, theirs = (sum(c.rows for c in side.checkpoints) for side in (state, there))
    if theirs > ours:
        raise CheckpointConflictError(
            f"the target's checkpoint of stream {state.stream!r} is ahead: {theirs} rows, the source's has {ours}",
            hint=hint,
        )
