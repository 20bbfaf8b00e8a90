"""The file sink: one stream's pages appended to a file, or written as one file a chunk, durable before acked.

What has been acknowledged is told by a `FileMark`: how many files stand, and how long the last one is. A file is
continued by cutting it to its mark, so that nothing a crash left behind stays in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import re
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from producer.errors import CheckpointConflictError, ConfigError, ProducerError, SinkUnavailableError
from producer.model import Page
from producer.sinks.formats import FileFormat
from producer.sinks.row_ends import pieces_of
from producer.sinks.wider_types import avro_rows, parquet_rows, with_types

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@dataclass(frozen=True, slots=True)
class FileMark:
    """``files``: whole files (chunked), or 1; ``length``: bytes of the one file without its footer, else 0."""

    files: int
    length: int


@dataclass(slots=True)
class FileChunk:
    """A page in its file format; ``mark`` is set when it has been written."""

    rows: int
    data: bytes | memoryview
    mark: FileMark | None = None

    @property
    def bytes(self) -> int:
        return len(self.data)


class FileSink:
    """Writes the pages of one stream, in the order they are submitted, to ``directory/name<suffix>``; a chunked
    format to ``name-00000<suffix>`` and so on.

    Writes that have queued up share one fsync. Errors: ConfigError where the directory cannot be used,
    SinkUnavailableError for a full or broken disk, CheckpointConflictError for a file that is not as its mark says.
    """

    def __init__(
        self, directory: Path, name: str, form: FileFormat, schema: pa.Schema, *, queue_chunks: int = 4
    ) -> None:
        self.mark = FileMark(0, 0)
        self._directory = directory
        self._name = name
        self._format = form
        self.schema = schema
        self._queue: asyncio.Queue[tuple[FileChunk, asyncio.Future[None]]] = asyncio.Queue(queue_chunks)
        self._file: FileIO | None = None
        self._task: asyncio.Task[None] | None = None

    def path(self, index: int = 0) -> Path:
        """The file, or the chunk's file."""
        number = f"-{index:05d}" if self._format.chunked else ""
        return self._directory / f"{self._name}{number}{self._format.suffix}"

    def paths(self) -> list[Path]:
        """The files that stand."""
        return [self.path(i) for i in range(self.mark.files)]

    @property
    def chunked(self) -> bool:
        return self._format.chunked

    def standing(self) -> tuple[FileMark, int] | None:
        """The mark of the whole rows in files that have no state, and how many rows; None where there is no file."""
        if self._format.chunked:
            files = next(n for n in itertools.count() if not self.path(n).exists())
            return (FileMark(files, 0), sum(self._rows_in(n) for n in range(files))) if files else None
        if not self.path().exists():
            return None
        *_, (rows, length) = [(0, len(self._format.header)), *self._ends(None)]
        return FileMark(1, length), rows

    def cut_mark(self, mark: FileMark, rows: int) -> tuple[FileMark, int]:
        """The last place at which the files up to `mark` can be cut without keeping more than `rows` rows: its mark,
        and how many rows are before it."""
        if self._format.chunked:
            files = kept = 0
            while files < mark.files and (more := self._rows_in(files)) <= rows - kept:
                files, kept = files + 1, kept + more
            return FileMark(files, 0), kept
        found = (len(self._format.header), 0)
        for kept, length in self._ends(mark.length):
            if kept > rows:
                break
            found = length, kept
        return FileMark(1, found[0]), found[1]

    def _ends(self, length: int | None) -> Iterator[tuple[int, int]]:
        assert self._format.ends is not None
        with self.path().open("rb") as file:
            yield from self._format.ends(pieces_of(file, length))

    def _rows_in(self, index: int) -> int:
        """The rows of one file of a chunked format."""
        if self._format.ends is None:
            from pyarrow.parquet import ParquetFile

            with ParquetFile(self.path(index)) as file:
                return int(file.metadata.num_rows)
        with self.path(index).open("rb") as file:
            return max((rows for rows, _ in self._format.ends(pieces_of(file))), default=0)

    def write_again(self, narrower: FileSink) -> None:
        """Writes the rows of `narrower`, which has the same columns in narrower types: into the same files where each
        is a chunk, otherwise into a new one, for `replace_file`; sets `mark`. Blocking."""
        try:
            if self._format.chunked:
                for index in range(narrower.mark.files):
                    self._write_whole(self.path(index), self._encoded(parquet_rows(self.path(index))))
                self.mark = narrower.mark
                return
            with self._new_path().open("wb") as file:
                file.write(self._format.header)
                for rows in avro_rows(narrower.path(), narrower.schema):
                    file.write(self._format.encode(with_types(rows, self.schema)))
                file.flush()
                os.fsync(file.fileno())
                self.mark = FileMark(1, file.tell())
        except OSError as error:
            raise _translated(error, self.path()) from None

    def replace_file(self) -> None:
        """Replaces the old file by the new one of `write_again`, unless that was done before. Blocking."""
        try:
            if self._new_path().exists():
                self._new_path().replace(self.path())
                _sync_directory(self._directory)
        except OSError as error:
            raise _translated(error, self.path()) from None

    def _new_path(self) -> Path:
        return self._directory / f".{self._name}{self._format.suffix}.new"

    def _encoded(self, rows: pa.RecordBatch) -> bytes:
        """A whole file of a chunked format."""
        encoded = self._format.encode(with_types(rows, self.schema))
        return b"".join((self._format.header, encoded, self._format.footer))

    async def open(self, mark: FileMark | None) -> None:
        """Begins anew (None), or goes on after `mark`."""
        await asyncio.to_thread(self._open, mark)
        self._task = asyncio.create_task(self._drain())

    def prepare(self, page: Page) -> FileChunk:
        """Encodes the page's columns that are part of the value; CPU only, in a worker thread."""
        names = self.schema.names
        batch = page.batch if page.batch.schema.names == names else page.batch.select(names)
        data = self._format.encode(batch)
        if self._format.chunked and batch.num_rows:
            data = b"".join((self._format.header, data, self._format.footer))
        return FileChunk(batch.num_rows, data)

    async def submit(self, prepared: FileChunk) -> asyncio.Future[None]:
        """Queues the chunk; the future is done when it is on the disk. Futures are done in the order of submission."""
        acked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._queue.put((prepared, acked))
        return acked

    async def finish(self, empty: pa.RecordBatch) -> None:
        """Completes the file with its footer; a chunked format without any chunk gets a file without rows."""
        await asyncio.to_thread(self._finish, empty)

    async def close(self) -> None:
        """Lets go of the file; what has been queued and not acknowledged is not written."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _drain(self) -> None:
        while True:
            items = [await self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get_nowait())
            try:
                await uninterrupted(asyncio.to_thread(self._write, [chunk for chunk, _ in items]))
            except ProducerError as error:
                for _, acked in items:
                    if not acked.done():
                        acked.set_exception(error)
                        acked.exception()  # seen: it is raised to whoever awaits it, and to nobody else
                continue
            for _, acked in items:
                if not acked.done():
                    acked.set_result(None)

    def _open(self, mark: FileMark | None) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if self._format.chunked:
                self._open_chunked(mark)
            else:
                self._open_single(mark)
            _sync_directory(self._directory)
        except OSError as error:
            raise _translated(error, self._directory) from None

    def _open_single(self, mark: FileMark | None) -> None:
        path = self.path()
        if self._format.may_chunk:
            self._remove_chunks(0)  # of an earlier dump that was large
        if mark is None:
            self._file = FileIO(path, "wb")
            self._put(self._format.header)
            self._sync()
            self.mark = FileMark(1, len(self._format.header))
            return
        if not path.exists():
            raise CheckpointConflictError(f"{path} is gone, and its state is not", hint="reset the dump to start over")
        self._file = FileIO(path, "r+b")
        if (size := os.fstat(self._file.fileno()).st_size) < mark.length:
            self._file.close()
            raise CheckpointConflictError(
                f"{path} has {size} bytes and its state says {mark.length}", hint="reset the dump to start over"
            )
        self._cut(mark)
        self.mark = mark

    def _open_chunked(self, mark: FileMark | None) -> None:
        self.mark = mark or FileMark(0, 0)
        if self.mark.files and not self.path(self.mark.files - 1).exists():
            raise CheckpointConflictError(
                f"{self.path(self.mark.files - 1)} is gone, and the state is not", hint="reset the dump to start over"
            )
        (self._directory / f"{self._name}{self._format.suffix}").unlink(missing_ok=True)  # another layout's
        self._remove_chunks(self.mark.files)

    def _remove_chunks(self, first: int) -> None:
        pattern = re.compile(re.escape(self._name) + r"-(\d{5,})" + re.escape(self._format.suffix) + r"(?:\.tmp)?")
        for entry in list(self._directory.iterdir()):
            match = pattern.fullmatch(entry.name)
            if match and int(match[1]) >= first:
                entry.unlink()

    def _write(self, chunks: Sequence[FileChunk]) -> None:
        mark = self.mark
        try:
            for chunk in chunks:
                if chunk.rows:
                    mark = self._write_chunk(chunk, mark) if self._format.chunked else self._append(chunk, mark)
                chunk.mark = mark
            if self._format.chunked:
                _sync_directory(self._directory)
            else:
                self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._cut(self.mark)
            raise _translated(error, self.path(mark.files)) from None
        self.mark = mark

    def _append(self, chunk: FileChunk, mark: FileMark) -> FileMark:
        separator = self._format.separator if mark.length > len(self._format.header) else b""
        self._put(separator)
        self._put(chunk.data)
        return FileMark(1, mark.length + len(separator) + len(chunk.data))

    def _write_chunk(self, chunk: FileChunk, mark: FileMark) -> FileMark:
        self._write_whole(self.path(mark.files), chunk.data)
        return FileMark(mark.files + 1, 0)

    def _write_whole(self, path: Path, data: bytes | memoryview) -> None:
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _finish(self, empty: pa.RecordBatch) -> None:
        try:
            if not self._format.chunked:
                self._put(self._format.footer)
                self._sync()
            elif self.mark.files == 0:
                data = b"".join((self._format.header, self._format.encode(empty), self._format.footer))
                self._write_chunk(FileChunk(0, data), self.mark)  # its number stays free for the first rows
        except OSError as error:
            raise _translated(error, self.path()) from None

    def _put(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())

    def _cut(self, mark: FileMark) -> None:
        if self._file is not None:
            self._file.truncate(mark.length)
            self._file.seek(mark.length)


async def uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """The result of `work`, which is awaited to its end even when the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})  # no file is closed under the thread that writes it
        if not task.cancelled():
            task.exception()  # seen: who is cancelled does not hear of it
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: OSError, path: Path) -> ProducerError:
    text = f"{path} cannot be written: {error.strerror}"
    if error.errno in _FULL:
        return SinkUnavailableError(
            text, hint="make room; what has been written stays, and the dump can go on from there"
        )
    return ConfigError(text)
