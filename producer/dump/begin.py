"""Owns where a dump begins: a new file, the state's exact place, or an offset that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from producer.dump.config import DumpConfig, DumpStrategy
from producer.dump.state import SavedDump
from producer.errors import CheckpointConflictError
from producer.model import Checkpoint, KeyPosition, OffsetPosition, Position, Split
from producer.sinks.files import FileMark

_RESET = "start over with resume=False (--no-resume), or use another output_dir (--output-dir)"


@dataclass(frozen=True, slots=True)
class Beginning:
    """``mark`` None: a new file; ``adopt``: whole rows that stand in a file without exact state stay in it.
    ``chunked`` None: to be decided by the table's size."""

    checkpoints: tuple[Checkpoint, ...]
    mark: FileMark | None = None
    adopt: bool = False
    chunked: bool | None = None


def needs_plan(config: DumpConfig, saved: SavedDump | None) -> bool:
    """False where the state's own splits are still being read."""
    return saved is None or saved.exact is None or _asked_offset(config, saved) > 0 or saved.is_complete


def begin(config: DumpConfig, saved: SavedDump | None, fingerprint: str, planned: Sequence[Split]) -> Beginning:
    """`planned` is a fresh plan where `needs_plan` says so, else empty. CheckpointConflictError where the state was
    made by another query, traversal or format."""
    exact = saved.exact if saved is not None else None
    if exact is not None:
        for option, then, now in (
            ("format", exact.format, str(config.format)),
            ("compress", exact.compress, config.compress),
        ):
            if then != now:
                raise CheckpointConflictError(
                    f"the dump of {config.table} was begun with {option}={then}, not {now}", hint=_RESET
                )
    if offset := _asked_offset(config, saved):
        checkpoints = _after_offset(planned, offset)
        if exact is not None:
            return Beginning(checkpoints, exact.mark, chunked=exact.chunked)
        return Beginning(checkpoints, adopt=config.resume)
    if exact is None:
        return Beginning(tuple(Checkpoint(split) for split in planned))
    if exact.fingerprint != fingerprint:
        raise CheckpointConflictError(
            f"the dump of {config.table} was begun with another query, order or strategy, or its columns have changed",
            hint=_RESET,
        )
    checkpoints = _grown(exact.checkpoints, planned) if planned else exact.checkpoints
    return Beginning(checkpoints, exact.mark, chunked=exact.chunked)


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


def _asked_offset(config: DumpConfig, saved: SavedDump | None) -> int:
    """The offset to begin after, 0 for none: the option until it has been applied, or an inexact state's own."""
    if saved is None:
        return config.resume_offset
    if saved.exact is None:
        return config.resume_offset or saved.current_offset
    return config.resume_offset if config.resume_offset != saved.exact.resume_offset else 0


def _after_offset(planned: Sequence[Split], offset: int) -> tuple[Checkpoint, ...]:
    if all(_is_offset(split) for split in planned):
        return tuple(Checkpoint(split, OffsetPosition(offset)) for split in planned)
    start = KeyPosition((offset,))
    kept = []
    for split in planned:
        if _number(split.upper, offset + 1) > offset:
            lower = start if _number(split.lower, offset) <= offset else split.lower
            kept.append(Checkpoint(replace(split, lower=lower)))
    return tuple(kept) or (Checkpoint(Split("0", start, start), start, done=True),)


def _grown(done: Sequence[Checkpoint], planned: Sequence[Split]) -> tuple[Checkpoint, ...]:
    """What has come after a complete dump: the rest of the table from where the last split ended."""
    last, end = done[-1], planned[-1]
    reached = last.split.upper or last.position
    if isinstance(last.position, OffsetPosition):
        return (Checkpoint(end, last.position),)
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
