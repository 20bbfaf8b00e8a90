"""Owns what several commands have in common: their arguments, reading the configuration, and writing answers."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from producer.errors import ConfigError

if TYPE_CHECKING:
    from producer.config import Config, StreamConfig
    from producer.protocols import CheckpointStore

_CLOSE_S = 5.0


class Closable(Protocol):
    async def close(self) -> None: ...


def add_config(parser: argparse.ArgumentParser, *, or_url: bool = False) -> None:
    """The configuration file (or, for a run that is going on, its URL) and what every command with one has."""
    text = "the configuration, a YAML file"
    if or_url:
        parser.add_argument("config", metavar="CONFIG|URL", help=f"{text}, or the run's URL; token: PRODUCER_TOKEN")
    else:
        parser.add_argument("config", metavar="CONFIG", help=text)
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument(
        "--log-format", choices=("auto", "plain", "json"), default="auto", help="how logs on stderr look (auto: plain)"
    )
    add_debug(parser)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """``--debug`` after the command as well as before it."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")


def add_json(parser: argparse.ArgumentParser, text: str = "answer with JSON on stdout") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def load(args: argparse.Namespace) -> Config:
    """The configuration of a command; from here on logs go to stderr, without its secrets."""
    from producer.config import load_config
    from producer.logs import configure_logs, redactor

    config = load_config(args.config)
    args.redact = redactor(config)  # also for what is told when the command fails
    configure_logs(args.log_level, args.log_format, args.redact)
    return config


def stream_named(config: Config, name: str) -> StreamConfig:
    """The configured stream of that name; ConfigError with the nearest one otherwise."""
    from producer.config.explain import nearest

    for stream in config.streams:
        if stream.name == name:
            return stream
    names = [stream.name for stream in config.streams]
    raise ConfigError(f"no stream is named {name!r}{nearest(name, names) or '; there are: ' + ', '.join(names)}")


@asynccontextmanager
async def open_store(config: Config) -> AsyncIterator[CheckpointStore]:
    """The configured checkpoint store, started, and closed again."""
    from producer.parts import make_store

    store = make_store(config)
    try:
        await store.start()
        yield store
    finally:
        await close(store)


async def close(part: Closable) -> None:
    """Closes a source, store or client; one that does not answer any more is left to the end of the process."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await part.close()
    except TimeoutError:
        return


def say(line: str = "") -> None:
    """One line of an answer on stdout."""
    sys.stdout.write(line + "\n")


def say_json(value: Any) -> None:
    """One JSON document on one line of stdout."""
    sys.stdout.write(json.dumps(value, default=str, ensure_ascii=False) + "\n")


def say_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns side by side, for people."""
    cells = [tuple(head), *(tuple("" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
