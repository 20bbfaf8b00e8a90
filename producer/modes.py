"""Owns what a changed ``mode`` or ``start`` means for a checkpoint: it is gone on with, added to, or refused.

A refusal is for what would leave rows out: those before a tail that began late, and those that a followed split has
still to look for. The mode that made a checkpoint is told by its splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from producer.config import StreamConfig
from producer.errors import OtherQueryError
from producer.model import Checkpoint, Split
from producer.nullkeys import reader_detail, watch_detail


def refuse_other_mode(config: StreamConfig, checkpoints: Iterable[Checkpoint]) -> None:
    """OtherQueryError where the stream, in the mode that it has now, would go on and leave rows out."""
    planned = [c for c in checkpoints if not c.split.is_replay]
    followed = [c for c in planned if c.split.is_open]
    if not followed:
        return
    name, mode = config.name, config.mode
    late = followed == planned and _begins_late(config, followed[0].split)
    if mode == "snapshot":
        # The snapshot of an empty table has an open split as well, but one that has looked for nothing.
        if late or followed != planned or set(reader_detail(followed[0].detail) or ()) - {"table"}:
            raise OtherQueryError(
                f"stream {name!r}: its checkpoint is that of a stream that is followed, and its mode is snapshot now",
                hint="put the mode back (producer run --once stops when caught up), or read again from the start "
                f"after: producer checkpoint reset CONFIG {name}",
            )
    elif late and (mode == "snapshot_then_tail" or (config.start == "beginning" and config.chat is None)):
        what = f"mode {mode}" if mode == "snapshot_then_tail" else f"mode {mode} with start beginning"
        raise OtherQueryError(
            f"stream {name!r}: its checkpoint began after the rows that were there (start latest), and {what} would "
            "leave them out",
            hint="put mode tail with start latest back, or read from the start after: "
            f"producer checkpoint reset CONFIG {name}",
        )


def tail_after(config: StreamConfig, checkpoints: Sequence[Checkpoint]) -> Split | None:
    """The open split that a snapshot lacks which is followed from now on: it begins where the plan ended."""
    planned = [c.split for c in checkpoints if not c.split.is_replay]
    if config.mode == "snapshot" or not planned or any(split.is_open for split in planned):
        return None
    lowers = {split.lower for split in planned}
    end = [split.upper for split in planned if split.upper not in lowers][-1]  # of a chat, not of what it was before
    number = 1 + max((int(split.id) for split in planned if split.id.isdigit()), default=0)
    watched = (watch_detail(c.detail) for c in checkpoints)
    return Split(str(number), lower=end, detail=next(filter(None, watched), None))


def _begins_late(config: StreamConfig, split: Split) -> bool:
    """Whether a plan's only split leaves out what was there. A chat's first message has a position before it too."""
    return split.id == "tail" if config.chat is not None else split.lower is not None
