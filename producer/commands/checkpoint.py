"""Owns ``producer checkpoint list|show|reset|set|adopt|copy``: looking at checkpoints and moving them by hand."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.commands.checkpoint_adopt import add_adopt
from producer.commands.checkpoint_copy import add_copy
from producer.errors import CheckpointCorruptError, ConfigError

if TYPE_CHECKING:
    from producer.config import Config
    from producer.model import Checkpoint, Position, StreamState
    from producer.protocols import CheckpointStore

_Action = Callable[[argparse.Namespace, "Config", "CheckpointStore"], Coroutine[Any, Any, int]]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("checkpoint", help="list, show, reset, set, adopt or copy checkpoints")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, function: _Action, text: str, *, stream: bool) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        options.add_config(sub)
        if stream:
            sub.add_argument("stream", metavar="STREAM")
        options.add_json(sub)
        sub.set_defaults(run=run, do=function)
        return sub

    action("list", _list, "all streams that have a checkpoint", stream=False)
    action("show", _show, "one stream's checkpoint, split by split", stream=True)
    action("reset", _reset, "forget a stream's checkpoint: its next run starts from the beginning", stream=True)
    setting = action("set", _set, "put a stream's position by hand", stream=True)
    where = setting.add_mutually_exclusive_group(required=True)
    where.add_argument("--offset", type=int, metavar="N", help="rows read, for an OFFSET stream")
    where.add_argument("--id", type=int, metavar="N", help="the last id that counts as read")
    where.add_argument("--key", metavar="JSON", help="the last key that counts as read: a JSON value or list")
    where.add_argument("--position", metavar="JSON", help='a position as `show --json` prints it: {"key": [7]}')
    setting.add_argument("--split", metavar="ID", help="which split, where there are several")
    add_adopt(actions)
    add_copy(actions)


def run(args: argparse.Namespace) -> int:
    config = options.load(args)
    return asyncio.run(_with_store(args, config))


async def _with_store(args: argparse.Namespace, config: Config) -> int:
    async with options.open_store(config) as store:
        return int(await args.do(args, config, store))


async def _list(args: argparse.Namespace, _config: Config, store: CheckpointStore) -> int:
    from producer.coordination.units import stream_names, whole_state

    summaries, corrupt = [], []
    for name in await stream_names(store):
        try:
            state = await whole_state(store, name)
        except CheckpointCorruptError as error:
            corrupt.append(error)  # the others are shown all the same
            continue
        if state is not None:
            summaries.append(_summary(state))
    if args.json:
        options.say_json(summaries)
    elif summaries:
        columns = ("stream", "rows", "splits", "done", "epoch", "updated_at")
        options.say_table(columns, [[summary[column] for column in columns] for summary in summaries])
    elif not corrupt:
        options.say("no checkpoints yet")
    if corrupt:
        raise corrupt[0]
    return 0


def _summary(state: StreamState) -> dict[str, Any]:
    return {
        "stream": state.stream,
        "rows": sum(c.rows for c in state.checkpoints),
        "splits": len(state.checkpoints),
        "done": sum(c.done for c in state.checkpoints),
        "epoch": state.epoch,
        "updated_at": state.updated_at,
        "fingerprint": state.fingerprint,
    }


async def _existing(store: CheckpointStore, stream: str, *, exact: bool = False) -> StreamState:
    from producer.coordination.units import stream_names, whole_state

    state = await (store.load(stream) if exact else whole_state(store, stream))
    if state is None:
        known = ", ".join(await stream_names(store)) or "none yet"
        raise ConfigError(f"stream {stream!r} has no checkpoint; streams with one: {known}")
    return state


async def _show(args: argparse.Namespace, _config: Config, store: CheckpointStore) -> int:
    from producer.model import state_to_json

    state = await _existing(store, args.stream)
    if args.json:
        options.say_json(state_to_json(state))
        return 0
    options.say(
        f"stream {state.stream}  fingerprint {state.fingerprint}  epoch {state.epoch}  updated {state.updated_at}"
    )
    if state.identity is not None:
        options.say("belongs to: " + ", ".join(f"{name} {fact}" for name, fact in state.identity.facts.items()))
    options.say_table(
        ("split", "after", "up to", "position", "rows", "done"),
        [
            (c.split.id, _shown(c.split.lower), _shown(c.split.upper), _shown(c.position), c.rows, _yes(c.done))
            for c in state.checkpoints
        ],
    )
    return 0


async def _reset(args: argparse.Namespace, config: Config, store: CheckpointStore) -> int:
    from producer.coordination.units import reset_whole, stream_names, whole_state
    from producer.ownership import refuse_other_place

    with contextlib.suppress(CheckpointCorruptError):  # which a reset is the way out of
        refuse_other_place(await whole_state(store, args.stream), app=config.app)
    # A stream that is no longer in the configuration can still be forgotten.
    found = await reset_whole(store, args.stream)
    if args.json:
        options.say_json({"stream": args.stream, "reset": found})
        return 0
    if not found:
        known = ", ".join(await stream_names(store)) or "none yet"
        raise ConfigError(f"stream {args.stream!r} has no checkpoint; streams with one: {known}")
    options.say(f"{args.stream}: forgotten; the next run starts from the beginning")
    return 0


async def _set(args: argparse.Namespace, config: Config, store: CheckpointStore) -> int:
    from producer.coordination.units import unit_names
    from producer.model import checkpoint_to_json

    position = _wanted(args)
    if units := await unit_names(store, args.stream):
        raise ConfigError(f"the work of stream {args.stream!r} is shared; give one of its units: {', '.join(units)}")
    state = await _existing(store, args.stream, exact=True)
    _refuse_other_place(state, config)
    epoch = await store.claim(args.stream)  # refused while a runner is at it
    old = _split(state, args.split)
    _check_fits(position, old)
    new = replace(old, position=position, done=False)
    await store.commit(args.stream, epoch, [new])
    if args.json:
        options.say_json(checkpoint_to_json(new))
    else:
        options.say(f"{args.stream}: split {new.split.id} set from {_shown(old.position)} to {_shown(position)}")
    return 0


def _refuse_other_place(state: StreamState, config: Config) -> None:
    from producer.ownership import refuse_other_place

    topic = next((stream.topic for stream in config.streams if stream.name == state.stream), "")
    refuse_other_place(state, app=config.app, topic=topic)


def _wanted(args: argparse.Namespace) -> Position:
    from producer.model import position_from_json

    if args.offset is not None:
        value: Any = {"offset": args.offset}
    elif args.id is not None:
        value = {"key": [args.id]}
    else:
        text = args.key if args.key is not None else args.position
        try:
            value = json.loads(text)
        except ValueError:
            raise ConfigError(
                f"{'--key' if args.key is not None else '--position'} is not JSON", hint="text needs quotes: '\"abc\"'"
            ) from None
        if args.key is not None:
            value = {"key": value if isinstance(value, list) else [value]}
    try:
        position = position_from_json(value)
    except ValueError:
        position = None
    if position is None:
        raise ConfigError('not a position; valid: {"offset": 5} or {"key": [7]}', hint="offsets are 0 or more")
    return position


def _split(state: StreamState, wanted: str | None) -> Checkpoint:
    ids = [c.split.id for c in state.checkpoints]
    if wanted is None and len(ids) == 1:
        wanted = ids[0]
    for checkpoint in state.checkpoints:
        if checkpoint.split.id == wanted:
            return checkpoint
    problem = f"stream {state.stream!r} has {len(ids)} splits" if wanted is None else f"there is no split {wanted!r}"
    raise ConfigError(f"{problem}; give --split with one of: {', '.join(ids)}")


def _check_fits(position: Position, checkpoint: Checkpoint) -> None:
    """A position of another kind, width or type than the split's own would only fail in the next run."""
    from producer.model import KeyPosition

    for known in (checkpoint.position, checkpoint.split.lower, checkpoint.split.upper):
        if known is None:
            continue
        if type(known) is not type(position):
            raise ConfigError(f"split {checkpoint.split.id} is at {_shown(known)}, which is another kind of position")
        if isinstance(known, KeyPosition) and isinstance(position, KeyPosition):
            kinds = [type(value) for value in known.values]
            if kinds != [type(value) for value in position.values]:
                names = ", ".join(kind.__name__ for kind in kinds)
                raise ConfigError(f"split {checkpoint.split.id} has a key of ({names}), such as {_shown(known)}")


def _shown(position: Position | None) -> str:
    from producer.model import position_to_json

    return "-" if position is None else json.dumps(position_to_json(position), ensure_ascii=False)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
