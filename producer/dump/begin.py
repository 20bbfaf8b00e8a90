"""Decides where a dump begins: a new file, the state's exact place, or a row that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from producer.dump.config import DumpConfig, DumpStrategy
from producer.dump.state import SavedDump
from producer.errors import CheckpointConflictError, ConfigError
from producer.model import Checkpoint, KeyPosition, OffsetPosition, Position, Split
from producer.sinks.files import FileMark, FileSink

log = logging.getLogger("producer.dump")
_RESET = "start over with resume=False (--no-resume), or use another output_dir (--output-dir)"


@dataclass(frozen=True, slots=True)
class Beginning:
    """The files up to `mark` (None: new ones) with their `rows`, of which the first is row `first_row` of the table,
    and the splits from where they are read on."""

    checkpoints: tuple[Checkpoint, ...]
    mark: FileMark | None = None
    rows: int = 0
    first_row: int = 0


def usable(config: DumpConfig, saved: SavedDump | None, fingerprint: str) -> SavedDump | None:
    """The state, if it is of the same dump. None where it is of another one that is complete: that one is over, and
    this one is new. CheckpointConflictError where the other one is not complete."""
    exact = saved.exact if saved is not None else None
    if saved is None or exact is None:
        return saved
    other = [
        f"{option}={then}, not {now}"
        for option, then, now in (
            ("format", exact.format, str(config.format)),
            ("compress", exact.compress, config.compress),
        )
        if then != now
    ]
    if exact.fingerprint != fingerprint:
        other.append("another query, order or strategy, or other columns")
    if not other:
        return saved
    if not saved.is_complete:
        raise CheckpointConflictError(f"the dump of {config.table} was begun with {other[0]}", hint=_RESET)
    log.info("%s: the complete dump was made with %s: starting over", config.table, "; ".join(other))
    return None


def needs_plan(config: DumpConfig, saved: SavedDump | None) -> bool:
    """False where the state's own splits are still being read."""
    return saved is None or saved.exact is None or asked_row(config, saved) > 0 or saved.is_complete


def begin(
    config: DumpConfig, saved: SavedDump | None, planned: Sequence[Split], sink: FileSink, *, over: bool = False
) -> Beginning:
    """`planned` is a fresh plan where `needs_plan` says so, else empty. `over`: files that are there without a usable
    state hold other rows, and are replaced."""
    exact = saved.exact if saved is not None else None
    if row := asked_row(config, saved):
        if all(_is_offset(split) for split in planned):
            return _at_row(saved, planned, sink, row, over=over)
        return _after_id(planned, sink, row, over=over)
    if saved is None or exact is None:
        return Beginning(tuple(Checkpoint(split) for split in planned))
    checkpoints = _grown(exact.checkpoints, planned) if planned else exact.checkpoints
    return Beginning(checkpoints, exact.mark, saved.dumped_rows, exact.first_row)


def asked_row(config: DumpConfig, saved: SavedDump | None) -> int:
    """The row to start from, 0 for none: the option until it has been applied, or an inexact state's own."""
    if saved is None:
        return config.start_row
    if saved.exact is None:
        return config.start_row or saved.current_offset
    return config.start_row if config.start_row != saved.exact.resume_offset else 0


def _at_row(saved: SavedDump | None, planned: Sequence[Split], sink: FileSink, row: int, *, over: bool) -> Beginning:
    """OFFSET: the files keep the rows before `row`. Where they cannot be cut there, less is kept and more is read."""
    exact = saved.exact if saved is not None else None
    first_row, mark, rows = 0, None, 0
    if saved is not None and exact is not None:
        first_row, mark, rows = exact.first_row, exact.mark, saved.dumped_rows
    elif not over and (standing := sink.standing()) is not None:
        mark, rows = standing
    if mark is None or row < first_row:
        return Beginning(tuple(Checkpoint(split, OffsetPosition(row)) for split in planned), first_row=row)
    if first_row + rows > row:
        mark, rows = sink.cut_mark(mark, row - first_row)
        row = first_row + rows
    return Beginning(tuple(Checkpoint(split, OffsetPosition(row)) for split in planned), mark, rows, row - rows)


def _after_id(planned: Sequence[Split], sink: FileSink, number: int, *, over: bool) -> Beginning:
    """ID_RANGE: new files with the rows whose id is above `number`. Ranges are read in parallel, so files that are
    there already cannot be cut at an id."""
    if not over and sink.standing() is not None:
        raise ConfigError(
            f"resume_offset with ID_RANGE begins a new file, and {sink.path()} is there",
            hint="move it away, use another output_dir, or set resume=False to replace it",
        )
    start = KeyPosition((number,))
    kept = []
    for split in planned:
        if _number(split.upper, number + 1) > number:
            lower = start if _number(split.lower, number) <= number else split.lower
            kept.append(Checkpoint(replace(split, lower=lower)))
    return Beginning(tuple(kept) or (Checkpoint(Split("0", start, start), start, done=True),))


def current_offset(config: DumpConfig, checkpoints: Sequence[Checkpoint], rows: int) -> int:
    """How many rows have been passed; with ID_RANGE the id up to which every row is written. `rows` where the keys
    are not whole numbers."""
    reached: Position | None = None
    for checkpoint in checkpoints:
        reached = (checkpoint.split.upper if checkpoint.done else None) or checkpoint.position or checkpoint.split.lower
        if not checkpoint.done:
            break
    if config.strategy is DumpStrategy.OFFSET:
        last = checkpoints[-1].position if checkpoints else None
        return last.rows if isinstance(last, OffsetPosition) else 0
    match reached:
        case KeyPosition((int(number),)):
            return number
        case None:
            return 0
    return rows


def part_done(checkpoints: Sequence[Checkpoint]) -> float:
    """The part of the ids, 0 to 1, that has been read; 0 where the splits are not ranges of numbers."""
    whole = done = 0
    for checkpoint in checkpoints:
        match checkpoint.split.lower, checkpoint.split.upper, checkpoint.position:
            case (KeyPosition((int(lower),)), KeyPosition((int(upper),)), position):
                whole += upper - lower
                reached = position.values[0] if isinstance(position, KeyPosition) else lower
                done += upper - lower if checkpoint.done or not isinstance(reached, int) else reached - lower
    return done / whole if whole else 0.0


def _grown(done: Sequence[Checkpoint], planned: Sequence[Split]) -> tuple[Checkpoint, ...]:
    """What has come after a complete dump: the rest of the table from where the last split ended."""
    last, end = done[-1], planned[-1]
    reached = last.split.upper or last.position
    if isinstance(last.position, OffsetPosition):
        return (Checkpoint(end, last.position, detail=last.detail),)
    if reached is None:
        return tuple(Checkpoint(split) for split in planned)
    if reached == end.upper:
        return (replace(last, done=True),)
    return (Checkpoint(Split("0", reached, end.upper)),)


def _is_offset(split: Split) -> bool:
    return not isinstance(split.lower, KeyPosition) and not isinstance(split.upper, KeyPosition)


def _number(position: Position | None, otherwise: int) -> int:
    match position:
        case None:
            return otherwise
        case KeyPosition((int(number),)):
            return number
    raise CheckpointConflictError("resume_offset needs a key that is one whole number", hint="leave it out")
