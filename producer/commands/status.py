"""Owns ``producer status``: the streams of a run that is going on here, or else what their checkpoints say."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from producer.config import Config

_TIMEOUT_S = 2.0
_COLUMNS = ("name", "state", "rows_acked", "rows_remaining", "topic", "last_commit_at", "error")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("status", help="how far the streams are")
    options.add_config(parser)
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = options.load(args)
    live = _ask_running(config)
    streams = live if live is not None else asyncio.run(_from_checkpoints(config))
    if args.json:
        options.say_json({"running": live is not None, "streams": streams})
        return 0
    options.say("running" if live is not None else "not running here; as of the last checkpoints:")
    options.say_table(_COLUMNS, [[stream.get(column) for column in _COLUMNS] for stream in streams])
    return 0


def _ask_running(config: Config) -> list[dict[str, Any]] | None:
    """What a run on the configured address answers about these streams; None where there is none."""
    if config.http.port == 0:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.http.host, config.http.host)  # noqa: S104
    connection = http.client.HTTPConnection(host, config.http.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/streams")
        streams = json.load(connection.getresponse())["streams"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None  # something else listens there, or nothing
    finally:
        connection.close()
    ours = {stream.name for stream in config.streams}
    return [stream for stream in streams if stream["name"] in ours] or None


async def _from_checkpoints(config: Config) -> list[dict[str, Any]]:
    async with options.open_store(config) as store:
        streams = []
        for stream in config.streams:
            told: dict[str, Any] = {"name": stream.name, "source": stream.source, "topic": stream.topic}
            try:
                state = await store.load(stream.name)
            except CheckpointCorruptError as error:
                streams.append({**told, "state": "failed", "error": error.message})
                continue
            checkpoints = state.checkpoints if state else ()
            done = bool(checkpoints) and all(c.done for c in checkpoints)
            streams.append(
                {
                    **told,
                    "state": "complete" if done else "stopped" if checkpoints else "not started",
                    "rows_acked": sum(c.rows for c in checkpoints),
                    "last_commit_at": state.updated_at if state else None,
                }
            )
    return streams
