"""Owns the checkpoint file of `producer.tgdata`: its JSON, read strictly and replaced whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from producer.errors import CheckpointConflictError, CheckpointCorruptError


@dataclass(frozen=True, slots=True)
class MessageCheckpoint:
    """The last message that was processed. `chat_id` is its chat, which after a migration is another than the
    group's own; `total_processed` counts over all runs."""

    group_id: int | str
    last_message_id: int = 0
    total_processed: int = 0
    chat_id: int | None = None

    def moved(self, *, chat_id: int, last_message_id: int, count: int) -> MessageCheckpoint:
        """After `count` more messages."""
        total = self.total_processed + count
        return replace(self, chat_id=chat_id, last_message_id=last_message_id, total_processed=total)


def load(path: str | Path, group_id: int | str) -> MessageCheckpoint:
    """The checkpoint of the group; a new one where there is no file. CheckpointConflictError for another group's,
    CheckpointCorruptError for anything that is not a checkpoint."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return MessageCheckpoint(group_id)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointCorruptError(f"{path}: cannot be read ({type(error).__name__})") from None
    try:
        found = json.loads(text)
        last, total = found["last_message_id"], found["total_processed"]
        chat_id, group = found.get("chat_id"), found["group_id"]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (last, total)):
            raise ValueError
        if chat_id is not None and not isinstance(chat_id, int):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointCorruptError(f"{path}: not a checkpoint", hint="remove it to begin anew") from None
    if str(group) != str(group_id):
        raise CheckpointConflictError(f"{path}: is the checkpoint of group {group}", hint="one file a group")
    return MessageCheckpoint(group_id, last, total, chat_id)


def save(path: str | Path, checkpoint: MessageCheckpoint) -> None:
    """Replaces the file, so that a crash leaves the old one or the new one and nothing in between."""
    target = Path(path)
    document = {
        "last_message_id": checkpoint.last_message_id,
        "total_processed": checkpoint.total_processed,
        "last_updated": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "group_id": checkpoint.group_id,
    }
    if checkpoint.chat_id is not None:
        document["chat_id"] = checkpoint.chat_id
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=4)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
