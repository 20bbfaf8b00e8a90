"""``producer verify``: does the topic hold what the source holds?

Exit code 0: all streams agree. 2: those that do not were not compared, for a wrong configuration. Otherwise 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.errors import ConfigError, ProducerError, unexpected

if TYPE_CHECKING:
    from producer.config import Config, StreamConfig
    from producer.verify import Counts
    from producer.verify.report import Range, Verified

_INTERVAL_S = 0.5
_DIFFERS, _WRONG_CONFIGURATION = 1, 2


def add_parser(subparsers: Any) -> None:
    text = "read streams' topics back and compare them with the source"
    codes = "Exit code 0: all agree; 1: one differs or cannot be compared; 2: only the configuration is wrong."
    parser = subparsers.add_parser("verify", help=text, description=f"{text}. {codes}")
    options.add_config(parser)
    parser.add_argument("streams", metavar="STREAM", nargs="*", help="default: all streams, one after another")
    options.add_json(parser, "a line of JSON for each stream on stdout")
    parser.add_argument("--progress", action="store_true", help="show progress also where stderr is no terminal")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from producer.lean import arrow_without_pandas
    from producer.sources import ONE_SESSION

    arrow_without_pandas()
    config = options.load(args)
    streams = [options.stream_named(config, name) for name in args.streams]
    if not streams:
        streams = [stream for stream in config.streams if config.sources[stream.source].type not in ONE_SESSION]
        for stream in config.streams:
            if stream not in streams:
                sys.stderr.write(f"{stream.name}: left out, since a run may be using its session; give its name\n")
    codes = {_verify(args, config, stream) for stream in streams} - {0}
    return 0 if not codes else _WRONG_CONFIGURATION if codes == {_WRONG_CONFIGURATION} else _DIFFERS


def _verify(args: argparse.Namespace, config: Config, stream: StreamConfig) -> int:
    """Compares one stream and tells the result; an error does not keep the others from being compared."""
    try:
        found = asyncio.run(_compare(args, config, stream))
    except Exception as error:
        if args.debug and not isinstance(error, ProducerError):
            traceback.print_exception(error)
        known = error if isinstance(error, ProducerError) else unexpected(error)
        _tell_error(args, stream, known)
        return _WRONG_CONFIGURATION if isinstance(error, ConfigError) else _DIFFERS
    if args.json:
        options.say_json(found.to_json())
    else:
        _tell(found)
    return 0 if found.agrees else _DIFFERS


async def _compare(args: argparse.Namespace, config: Config, stream: StreamConfig) -> Verified:
    from producer.verify import Counts, verify

    counts = Counts()
    shown = asyncio.create_task(_show(counts)) if args.progress or sys.stderr.isatty() else None
    try:
        return await verify(config, stream, counts)
    finally:
        if shown is not None:
            shown.cancel()
            _line("\r\x1b[K" if sys.stderr.isatty() else "")


def _tell_error(args: argparse.Namespace, stream: StreamConfig, error: ProducerError) -> None:
    """Why the stream could not be compared: on stderr, and as its line of JSON."""
    text = args.redact(" ".join(str(error).split()))
    sys.stderr.write(f"error: stream {stream.name!r} was not compared: {text}\n")
    if args.json:
        kind = type(error).__name__
        options.say_json({"stream": stream.name, "topic": stream.topic, "agrees": False, "error": text, "kind": kind})
    sys.stdout.flush()


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
    if found.unscannable:
        say(f"  the source was read by a run's own page readers, since a scan ends at a row: {found.unscannable}")
    if c.duplicates:
        say(f"  {c.duplicates:,} duplicates: the record before with the same key has the same value (sent again after")
        say("  a failure; a reader that keeps the last record of a key does not see them)")
    if c.updates:
        say(f"  {c.updates:,} updates: a later record of the same key has another value; the last one counts")
    if c.deleted:
        say(f"  {c.deleted:,} keys deleted: their last record is a tombstone")
    if c.pending:
        say(f"  {_rows(c.pending)} after the checkpoint {_are(c.pending)} not on the topic yet")
    if c.dead_lettered:
        say(f"  {_rows(c.dead_lettered)} {_are(c.dead_lettered)} in the dead letters")
    if found.letters_without_key and not c.agrees:
        say(f"  {found.letters_without_key:,} dead letters do not tell their row's key, which is masked")
    for column, count in c.null_keys.items():
        say(f"  {_rows(count)} with NULL in column {column} {_are(count)} not sent")
    _kind("missing on the topic", c.missing, found.missing)
    _kind("on the topic and not in the source (any more)", c.unexpected, found.unexpected)
    _kind("with another value on the topic", c.differing, found.differing)
    _ranges([part for part in found.ranges if not part.agrees])
    sums = f"checksum {c.source_checksum:016x} of the source, {c.topic_checksum:016x} of the topic"
    said = "DIFFER" if not c.agrees else "AGREE up to the checkpoint" if c.pending else "AGREE"
    say(f"{said}: {sums}, {found.seconds:.1f} s")


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _kind(text: str, count: int, names: Sequence[str]) -> None:
    if count:
        more = f" and {count - len(names):,} more" if count > len(names) else ""
        options.say(f"  {count:,} {text}: {'; '.join(names)}{more}")


def _ranges(unequal: Sequence[Range]) -> None:
    """Where in the source the rows are that are missing or differ."""
    from producer.model import describe_position
    from producer.verify.report import NAMED

    for part in unequal[:NAMED]:
        if not part.split:
            options.say(f"  in no split, so that nothing sends them: {part.rows:,} rows, {part.missing:,} missing")
            continue
        start = "from the start" if part.after is None else f"after {describe_position(part.after)}"
        end = "to the end" if part.through is None else f"up to {describe_position(part.through)}"
        options.say(
            f"  split {part.split}, {start} {end}: {part.rows:,} rows, "
            f"{part.missing:,} missing, {part.differing:,} with another value"
        )
    if len(unequal) > NAMED:
        options.say(f"  and {len(unequal) - NAMED:,} more splits")
