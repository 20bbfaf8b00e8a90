"""Owns ``producer status``: the streams of a run that is going on here, or else what their checkpoints say.

``rows_committed`` has the same meaning in both: all rows up to the checkpoint, of all runs; ``rows_acked`` is of a run.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.commands.control import address_of, ask, configured, is_url, refuse_other_app
from producer.errors import CheckpointCorruptError, OtherQueryError, ProducerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from producer.config import Config
    from producer.model import Checkpoint

_TIMEOUT_S = 2.0
_COLUMNS = ("name", "state", "rows_committed", "rows_remaining", "topic", "last_commit_at", "workers", "error")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("status", help="how far the streams are")
    options.add_config(parser, or_url=True)
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    running, streams = _found(args)
    if args.json:
        options.say_json({"running": running, "streams": streams})
        return 0
    options.say("running" if running else "not running here; as of the last checkpoints:")
    rows = [{**stream, "workers": _workers(stream)} for stream in streams]
    options.say_table(_COLUMNS, [[row.get(column) for column in _COLUMNS] for row in rows])
    return 0


def _found(args: argparse.Namespace) -> tuple[bool, list[dict[str, Any]]]:
    """Whether a run answers, and its streams; else those of the checkpoints."""
    if is_url(args.config):
        return True, ask(address_of(args), "GET", "/streams")["streams"]
    config = options.load(args)
    live = _ask_running(config)
    return (False, asyncio.run(_from_checkpoints(config))) if live is None else (True, live)


def _ask_running(config: Config) -> list[dict[str, Any]] | None:
    """What a run on the configured address answers about these streams; None where there is none."""
    address = configured(config)
    if address is None:
        return None
    try:
        told = ask(address, "GET", "/streams", timeout_s=_TIMEOUT_S)
        refuse_other_app(address, told)
        ours = {stream.name for stream in config.streams}
        return [stream for stream in told["streams"] if stream["name"] in ours] or None
    except (ProducerError, KeyError, TypeError):
        return None  # something else listens there, or nothing


def _workers(stream: Mapping[str, Any]) -> str:
    """Who has how many splits."""
    owners = stream.get("owners")
    if owners is None:
        owners = Counter(split["owner"] for split in stream.get("splits", ()) if split["owner"] is not None)
    return ", ".join(f"{worker} ({splits})" for worker, splits in sorted(owners.items()) if splits)


def _state(checkpoints: Sequence[Checkpoint]) -> str:
    if not checkpoints:
        return "not started"
    return "complete" if all(c.done for c in checkpoints) else "stopped"


async def _from_checkpoints(config: Config) -> list[dict[str, Any]]:
    from producer.coordination.units import owners, whole_state
    from producer.ownership import refuse_other_place

    async with options.open_store(config) as store:
        streams = []
        for stream in config.streams:
            told: dict[str, Any] = {"name": stream.name, "source": stream.source, "topic": stream.topic}
            try:
                state = await whole_state(store, stream.name)
            except CheckpointCorruptError as error:
                streams.append({**told, "state": "failed", "error": error.message})
                continue
            try:
                refuse_other_place(state, app=config.app, topic=stream.topic)
            except OtherQueryError as error:
                streams.append({**told, "state": "failed", "error": str(error)})
                continue
            checkpoints = state.checkpoints if state else ()
            streams.append(
                {
                    **told,
                    "state": "paused" if state and state.paused else _state(checkpoints),
                    "rows_committed": sum(c.rows for c in checkpoints if not c.split.is_replay),
                    "last_commit_at": state.updated_at if state else None,
                    "owners": dict(await owners(store, stream.name)),
                }
            )
    return streams
