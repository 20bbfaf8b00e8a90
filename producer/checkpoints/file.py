"""Owns checkpoints in files: one JSON file a stream, replaced atomically and durably.

A commit writes a temporary file, fsyncs it, renames it over the old one and fsyncs the directory: a crash at any
instruction leaves either the old state or the new one. A lock (flock on ``<stream>.lock``, released by the kernel
when the process dies) keeps a second runner out; the epoch in the file fences one on a file system without locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import urllib.parse
import zlib
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from producer.config import Config, FileCheckpointsConfig
from producer.errors import CheckpointConflictError, CheckpointCorruptError, ConfigError, PermanentError
from producer.model import Checkpoint, StreamState, state_from_json, state_to_json

SUFFIX = ".checkpoint.json"


class FileCheckpointStore:
    """A directory with ``<stream>.checkpoint.json`` files (the name is percent-encoded where it must be).

    All work is done in threads. Errors: ConfigError where the directory cannot be made or written,
    PermanentError where a save fails (disk full), CheckpointCorruptError, CheckpointConflictError.
    """

    def __init__(self, config: Config) -> None:
        if not isinstance(config.checkpoints, FileCheckpointsConfig):
            raise TypeError("this store is for checkpoints of type file")
        self.directory = Path(config.checkpoints.path)
        self._locks: dict[str, int] = {}
        self._states: dict[str, StreamState] = {}
        self._writing = asyncio.Lock()

    async def start(self) -> None:
        await asyncio.to_thread(self._make_directory)

    async def close(self) -> None:
        async with self._writing:
            for descriptor in self._locks.values():
                os.close(descriptor)
            self._locks.clear()
            self._states.clear()

    async def load(self, stream: str) -> StreamState | None:
        return await asyncio.to_thread(self._read, stream)

    async def claim(self, stream: str, above: int = 0) -> int:
        return await asyncio.to_thread(self._claim, stream, above)

    async def begin(self, state: StreamState) -> None:
        async with self._writing:
            await _finish(asyncio.to_thread(self._begin, state))

    async def commit(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> None:
        async with self._writing:
            await _finish(asyncio.to_thread(self._change, stream, epoch, changed))

    async def set_paused(self, stream: str, epoch: int, paused: bool) -> None:
        async with self._writing:
            await _finish(asyncio.to_thread(self._change, stream, epoch, (), paused))

    async def reset(self, stream: str) -> bool:
        return await asyncio.to_thread(self._reset, stream)

    async def streams(self) -> Sequence[str]:
        return await asyncio.to_thread(self._list)

    # --- in threads ------------------------------------------------------------------------------------------------

    def _path(self, stream: str) -> Path:
        return self.directory / (_file_stem(stream) + SUFFIX)

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe = self.directory / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"checkpoints.path: cannot write to the directory {str(self.directory)!r}: {error.strerror}",
                hint="name a directory that this user may write to",
            ) from error

    def _read(self, stream: str) -> StreamState | None:
        path = self._path(stream)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise self._corrupt(stream, path, str(error)) from error
        try:
            document = json.loads(text)
            if zlib.crc32(_canonical(document["state"])) != document["crc32"]:
                raise ValueError("its checksum does not match")
            state = state_from_json(document["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._corrupt(stream, path, str(error)) from error
        if state.stream != stream:
            raise self._corrupt(stream, path, f"it belongs to the stream {state.stream!r}")
        return state

    def _corrupt(self, stream: str, path: Path, why: str) -> CheckpointCorruptError:
        return CheckpointCorruptError(
            f"the checkpoint of stream {stream!r} in {str(path)!r} cannot be read: {why}",
            hint=f"put a good copy back, or start the stream over with: producer checkpoint reset CONFIG {stream}",
        )

    def _claim(self, stream: str, above: int) -> int:
        if stream not in self._locks:
            self._locks[stream] = self._lock(stream)
        state = self._read(stream)
        epoch = max(state.epoch if state else 0, above) + 1
        if state is not None:
            # The new epoch must be on disk before this runner sends anything: an older one is then fenced.
            self._save(replace(state, epoch=epoch))
        return epoch

    def _lock(self, stream: str) -> int:
        path = self.directory / (_file_stem(stream) + ".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"checkpoints.path: cannot write {str(path)!r}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(
                    f"checkpoints.path: the file system of {str(path)!r} has no locks: {error.strerror}",
                    hint="use a local directory, or checkpoints of another type",
                ) from error
            raise CheckpointConflictError(
                f"stream {stream!r} is being run by another process (it holds {str(path)!r})",
                hint="stop the other process first",
            ) from error
        return descriptor

    def _begin(self, state: StreamState) -> None:
        self._check_epoch(state.stream, state.epoch)
        self._save(state)

    def _change(self, stream: str, epoch: int, changed: Sequence[Checkpoint], paused: bool | None = None) -> None:
        state = self._check_epoch(stream, epoch)
        if state is None:
            raise CheckpointConflictError(
                f"the checkpoint of stream {stream!r} went away while it was running", hint="start the run again"
            )
        if paused is not None:
            state = replace(state, paused=paused)
        self._save(state.with_changes(changed, _now()))

    def _check_epoch(self, stream: str, epoch: int) -> StreamState | None:
        """What is on disk, provided that no other runner has been there; in a directory that was made anew its epoch
        may be lower."""
        state = self._read(stream)
        if state is not None and state.epoch != epoch:
            raise CheckpointConflictError(
                f"stream {stream!r} has been taken over by another runner (epoch {state.epoch}, ours is {epoch})",
                hint="let only one run of a stream use a checkpoint directory",
            )
        return state

    def _save(self, state: StreamState) -> None:
        path = self._path(state.stream)
        document = _canonical(state_to_json(state))
        content = b'{"crc32":%d,"state":%s}\n' % (zlib.crc32(document), document)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
            _fsync_directory(self.directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise PermanentError(
                f"the checkpoint of stream {state.stream!r} cannot be saved in {str(self.directory)!r}: "
                f"{error.strerror}",
                hint="the last saved checkpoint is intact; make room and run again: nothing is lost",
            ) from error

    def _reset(self, stream: str) -> bool:
        held = stream in self._locks
        descriptor = self._locks[stream] if held else self._lock(stream)
        try:
            self._path(stream).unlink()
            _fsync_directory(self.directory)
        except FileNotFoundError:
            return False
        finally:
            if not held:
                os.close(descriptor)
        return True

    def _list(self) -> Sequence[str]:
        try:
            names = [entry.name for entry in os.scandir(self.directory)]
        except FileNotFoundError:
            return []
        return sorted(urllib.parse.unquote(name[: -len(SUFFIX)]) for name in names if name.endswith(SUFFIX))


async def _finish(work: Coroutine[None, None, None]) -> None:
    """Awaits a write to its end even when the caller is cancelled, so that two writes never overlap."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await task
        raise


def _file_stem(stream: str) -> str:
    """The stream's name as a file name: percent-encoded, no path, no leading dot."""
    stem = urllib.parse.quote(stream, safe=" ()+,=@")
    return "%2E" + stem[1:] if stem.startswith(".") else stem


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
