"""The checkpoint file of `TgData`: JSON, read strictly, replaced whole, and locked while a call uses it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from producer.errors import CheckpointConflictError, CheckpointCorruptError, ConfigError, PermanentError

LOCK_WAIT_S = 0.5  #: an abandoned iterator releases its lock a moment after its loop has ended
LOCK_POLL_S = 0.02
PROBE_BYTES = 4096  #: more than a checkpoint takes


@dataclass(frozen=True, slots=True)
class MessageCheckpoint:
    """The last processed message.

    `chat_id` is the chat of that message: after a migration another one than the group's own. `account_id` is the user
    that read it. Both are None in a file that was written without them. `total_processed` counts over all runs.
    """

    group_id: int | str
    last_message_id: int = 0
    total_processed: int = 0
    chat_id: int | None = None
    account_id: int | None = None

    def moved(self, *, chat_id: int, last_message_id: int, count: int, account_id: int) -> MessageCheckpoint:
        """After `count` more messages."""
        total = self.total_processed + count
        return replace(
            self, chat_id=chat_id, last_message_id=last_message_id, total_processed=total, account_id=account_id
        )


class CheckpointFile:
    """One checkpoint file. ``await lock()`` before any other method, ``release()`` at the end.

    The lock is the kernel's (flock): it ends with the process, however that ends. It stands in a file next to the
    checkpoint, because every save replaces the checkpoint itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.realpath(path))
        self._lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._descriptor: int | None = None

    async def lock(self) -> None:
        """Locks the file and proves that a checkpoint can be written there.

        CheckpointConflictError while another run has it, ConfigError where nothing can be written.
        """
        self._check_place()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LOCK_WAIT_S
        while not self._try_lock():
            if loop.time() > deadline:
                raise CheckpointConflictError(
                    f"checkpoint_file {self.path}: another run is using it",
                    hint="wait for its end, or aclose() an iterator that was left early; give each chat its own file",
                )
            await asyncio.sleep(LOCK_POLL_S)
        try:
            self._check_space()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Ends the lock. Idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # removed first: whoever opens it later makes a new one
                self._lock_path.unlink()
            os.close(descriptor)

    def read(self) -> MessageCheckpoint | None:
        """The checkpoint; None where there is no file. CheckpointCorruptError for anything else."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointCorruptError(f"{self.path}: cannot be read ({type(error).__name__})") from None
        try:
            return _parse(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointCorruptError(f"{self.path}: not a checkpoint", hint="remove it to begin anew") from None

    def save(self, checkpoint: MessageCheckpoint) -> None:
        """Replaces the file, so that a crash leaves the old one or the new one and nothing in between.

        PermanentError where it cannot be written; the old one is kept.
        """
        document = {
            "last_message_id": checkpoint.last_message_id,
            "total_processed": checkpoint.total_processed,
            "last_updated": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "group_id": checkpoint.group_id,
        }
        document |= {
            name: value for name in ("chat_id", "account_id") if (value := getattr(checkpoint, name)) is not None
        }
        try:
            self._write(json.dumps(document, indent=4), keep=True)
        except OSError as error:
            hint = "the messages after the last checkpoint come again with the next run"
            raise PermanentError(
                f"checkpoint_file {self.path}: cannot be written ({error.strerror})", hint=hint
            ) from None

    # --- the place, and the lock ---

    def _check_place(self) -> None:
        try:
            kind = self.path.stat().st_mode
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                raise self._unusable("its folder does not exist", "create the folder first") from None
            return
        except OSError as error:
            raise self._unusable(str(error.strerror)) from None
        if not stat.S_ISREG(kind):
            raise self._unusable("is a folder" if stat.S_ISDIR(kind) else "is not a regular file")

    def _try_lock(self) -> bool:
        """Whether the lock is ours now. A lock file that was removed after we opened it is nobody's."""
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(f"nothing can be written next to it: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino != self._lock_path.stat().st_ino:
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EACCES:
                return False
            raise self._unusable(f"its file system has no locks: {error.strerror}") from None
        self._descriptor = descriptor
        return True

    def _check_space(self) -> None:
        try:
            self._write(" " * PROBE_BYTES, keep=False)
        except OSError as error:
            raise self._unusable(f"cannot be written: {error.strerror}") from None

    def _write(self, text: str, *, keep: bool) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if keep:
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _unusable(self, why: str, hint: str = "name a file that can be written") -> ConfigError:
        return ConfigError(f"checkpoint_file {self.path}: {why}", hint=hint)


def _parse(found: dict[str, object]) -> MessageCheckpoint:
    """The document's checkpoint; ValueError, KeyError or TypeError where it is none."""
    last, total, group = found["last_message_id"], found["total_processed"], found["group_id"]
    chat, account = found.get("chat_id"), found.get("account_id")
    if not (_is_int(last) and _is_int(total) and int(str(last)) >= 0 and int(str(total)) >= 0):
        raise ValueError
    if not isinstance(group, str) and not _is_int(group):
        raise ValueError
    if not all(number is None or _is_int(number) for number in (chat, account)):
        raise ValueError
    return MessageCheckpoint(group, last, total, chat, account)  # type: ignore[arg-type]  # checked above


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
