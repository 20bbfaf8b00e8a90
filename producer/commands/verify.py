"""Owns ``producer verify``: does the topic hold what the source holds? Exit code 0 only if it does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from producer.commands import options

if TYPE_CHECKING:
    from producer.config import StreamConfig
    from producer.verified import Range, Verified
    from producer.verify import Counts

_INTERVAL_S = 0.5


def add_parser(subparsers: Any) -> None:
    text = "read streams' topics back and compare them with the source"
    parser = subparsers.add_parser("verify", help=text, description=f"{text}. Exit code 0: they agree; 1: they do not.")
    options.add_config(parser)
    parser.add_argument("streams", metavar="STREAM", nargs="*", help="default: all streams, one after another")
    options.add_json(parser, "a line of JSON for each stream on stdout")
    parser.add_argument("--progress", action="store_true", help="show progress also where stderr is no terminal")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from producer.lean import arrow_without_pandas
    from producer.sources import ONE_SESSION
    from producer.verify import Counts, verify

    arrow_without_pandas()
    config = options.load(args)
    streams = [options.stream_named(config, name) for name in args.streams]
    if not streams:
        streams = [stream for stream in config.streams if config.sources[stream.source].type not in ONE_SESSION]
        for stream in config.streams:
            if stream not in streams:
                sys.stderr.write(f"{stream.name}: left out, since a run may be using its session; give its name\n")

    async def work(stream: StreamConfig) -> Verified:
        counts = Counts()
        shown = asyncio.create_task(_show(counts)) if args.progress or sys.stderr.isatty() else None
        try:
            return await verify(config, stream, counts)
        finally:
            if shown is not None:
                shown.cancel()
                _line("\r\x1b[K" if sys.stderr.isatty() else "")

    agree = True
    for stream in streams:
        found = asyncio.run(work(stream))
        agree &= found.comparison.agrees
        if args.json:
            options.say_json(found.to_json())
        else:
            _tell(found)
    return 0 if agree else 1


async def _show(counts: Counts) -> None:
    terminal = sys.stderr.isatty()
    while True:
        text = f"{counts.rows:,} rows of the source, {counts.records:,} records of the topic"
        _line(f"\r\x1b[K{text}" if terminal else f"{text}\n")
        await asyncio.sleep(_INTERVAL_S if terminal else 10 * _INTERVAL_S)


def _line(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _tell(found: Verified) -> None:
    c = found.comparison
    say = options.say
    say(f"source: {c.source_rows - c.source_repeats:,} rows of stream {found.stream}")
    say(f"topic:  {c.topic_records:,} records in {found.topic}, {c.topic_keys:,} keys with a value")
    if c.duplicates:
        say(f"  {c.duplicates:,} duplicates: the record before with the same key has the same value (sent again after")
        say("  a failure; a reader that keeps the last record of a key does not see them)")
    if c.updates:
        say(f"  {c.updates:,} updates: a later record of the same key has another value; the last one counts")
    if c.deleted:
        say(f"  {c.deleted:,} keys deleted: their last record is a tombstone")
    if c.pending:
        say(f"  {c.pending:,} rows after the checkpoint are not on the topic yet")
    _kind("missing on the topic", c.missing, found.missing)
    _kind("on the topic and not in the source (any more)", c.unexpected, found.unexpected)
    _kind("with another value on the topic", c.differing, found.differing)
    _ranges([part for part in found.ranges if not part.agrees])
    sums = f"checksum {c.source_checksum:016x} of the source, {c.topic_checksum:016x} of the topic"
    said = "DIFFER" if not c.agrees else "AGREE up to the checkpoint" if c.pending else "AGREE"
    say(f"{said}: {sums}, {found.seconds:.1f} s")


def _kind(text: str, count: int, names: Sequence[str]) -> None:
    if count:
        more = f" and {count - len(names):,} more" if count > len(names) else ""
        options.say(f"  {count:,} {text}: {'; '.join(names)}{more}")


def _ranges(unequal: Sequence[Range]) -> None:
    """Where in the source the rows are that are missing or differ."""
    from producer.model import describe_position
    from producer.verified import NAMED

    for part in unequal[:NAMED]:
        start = "from the start" if part.after is None else f"after {describe_position(part.after)}"
        end = "to the end" if part.through is None else f"up to {describe_position(part.through)}"
        options.say(
            f"  split {part.split}, {start} {end}: {part.rows:,} rows, "
            f"{part.missing:,} missing, {part.differing:,} with another value"
        )
    if len(unequal) > NAMED:
        options.say(f"  and {len(unequal) - NAMED:,} more splits")
