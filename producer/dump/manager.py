"""One table's dump: where it begins, how its splits are read in parallel, and that the state follows the file."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
from asyncio import sleep
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from producer.dump import state as state_file
from producer.dump.begin import Beginning, begin, current_offset, needs_plan, part_done, usable
from producer.dump.config import DumpConfig, DumpFormat, DumpStrategy
from producer.dump.progress import DumpProgress, DumpState, DumpStats, utc_now
from producer.dump.state import Kept, SavedDump
from producer.errors import (
    ConfigError,
    ProducerError,
    RequestTimeoutError,
    SchemaChangedError,
    SinkUnavailableError,
    TransientError,
)
from producer.model import Checkpoint, Dataset, Page, Split
from producer.nullkeys import refuse_null_keys
from producer.protocols import NullKeySource, RememberingReader, Source
from producer.sinks.files import FileChunk, FileSink, uninterrupted
from producer.sinks.formats import chunk_per_file, file_format

T = TypeVar("T")
log = logging.getLogger("producer.dump")
#: Called after each chunk; an awaitable result is awaited. What it raises ends the dump.
ProgressCallback = Callable[[DumpProgress], object]

#: A CSV of more rows than a sheet holds (2**20, one of them the header) is written as one file a chunk.
SHEET_ROWS = 2**20 - 1
DRAIN_S = 20.0


class FileTables(Protocol):
    """A source that reads its tables in another way for files, such as `IptvPortalSource`."""

    def for_files(self, table: str, *, typed: bool, types: Mapping[str, str]) -> Source: ...

    def inferred_types(self, dataset: Dataset) -> Mapping[str, str]: ...


class Client(Protocol):
    """Something whose tables are a source, such as an `AsyncIPTVPortalClient`."""

    def source(self, *, timeout_s: float | None = None) -> Source: ...


@dataclass(frozen=True, slots=True)
class _Ack:
    """A submitted chunk that waits for the disk."""

    split: str
    page: Page
    chunk: FileChunk
    acked: asyncio.Future[None]


class _Signal(Enum):
    SAVE = 1  # write the state once more
    END = 2  # nothing more will be submitted


class AsyncDumpManager:
    """Dumps one table. `client` is a source of the engine, started by the dump and closed by its owner, or a client
    that has one. One dump at a time; `progress` and `stats` stay readable afterwards."""

    def __init__(self, client: Source | Client, config: DumpConfig) -> None:
        self.config = config
        self.stats = DumpStats(config)
        self._client: Source = client.source(timeout_s=config.batch_timeout) if hasattr(client, "source") else client
        self._source = self._client
        self._stream = config.stream()
        self._going = asyncio.Event()
        self._going.set()
        self._checkpoints: dict[str, Checkpoint] = {}
        self._kept: Kept | None = None
        self._acks: asyncio.Queue[_Ack | _Signal] = asyncio.Queue()
        self._callback: ProgressCallback | None = None

    @property
    def progress(self) -> DumpProgress:
        return self.stats.progress

    def reset(self) -> None:
        """Forgets the state file and the progress: the next dump starts over. ConfigError where it cannot be
        removed, CheckpointConflictError while the dump runs."""
        with state_file.locked(self.config):
            try:
                self.config.state_path.unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(f"{self.config.state_path} cannot be removed: {error.strerror}") from None
        self.stats = DumpStats(self.config)

    def pause(self) -> None:
        """Stops after the chunks that are being written; the state is saved. Nothing is written until `resume`."""
        self._going.clear()
        self.progress.stop_clock()
        if self.stats.state is DumpState.RUNNING:
            self.stats.state = DumpState.PAUSED
            self._acks.put_nowait(_Signal.SAVE)

    def resume(self) -> None:
        self._going.set()
        if self.stats.state is DumpState.PAUSED:
            self.stats.state = DumpState.RUNNING
            self.progress.start_clock()

    async def dump(self, progress_callback: ProgressCallback | None = None) -> DumpStats:
        """Dumps the table to its end, from where the state says. Errors of `producer.errors`; the state is kept."""
        self._callback = progress_callback
        with state_file.locked(self.config):
            self.stats = DumpStats(self.config, state=DumpState.RUNNING if self._going.is_set() else DumpState.PAUSED)
            self._checkpoints, self._kept, self._acks = {}, None, asyncio.Queue()
            try:
                await self._dump()
            except asyncio.CancelledError:
                self.stats.state = DumpState.STOPPED
                raise
            except Exception as error:  # a callback's own, too
                self.stats.state, self.stats.error = DumpState.FAILED, str(error)
                raise
            finally:
                self.progress.stop_clock()
        return self.stats

    async def _dump(self) -> None:
        config, stream = self.config, self._stream
        if self._going.is_set():
            self.progress.start_clock()
        saved = found = state_file.load(config) if config.resume else None
        self._source = self._for_files({} if saved is None or saved.exact is None else saved.exact.types)
        source = self._source
        await self._retried(source.start)
        dataset = await self._retried(lambda: source.describe(stream))
        saved = usable(config, saved, dataset.fingerprint(stream.traversal))
        planned: Sequence[Split] = ()
        if needs_plan(config, saved):
            planned = await self._retried(lambda: source.plan(stream, dataset))
        chunked = None if saved is None or saved.exact is None else saved.exact.chunked
        sink = self._sink(dataset, chunked)
        try:
            if saved is not None and saved.exact is not None and saved.exact.replacing:
                await uninterrupted(asyncio.to_thread(sink.replace_file))
            over = not config.resume or saved is not found
            beginning = await asyncio.to_thread(begin, config, saved, planned, sink, over=over)
            async with contextlib.AsyncExitStack() as sinks:
                sinks.push_async_callback(sink.close)
                await self._open(sink, dataset, beginning, saved)
                await self._read_all(sink, dataset, sinks)
            if isinstance(source, NullKeySource):  # rows that no page has, and that may have come meanwhile
                await self._retried(partial(refuse_null_keys, source, stream))
            self.progress.completed_at = utc_now()
            self.progress.total_rows = self.progress.dumped_rows
            self.stats.state = DumpState.COMPLETE
            await self._save()
        finally:
            if self._kept is not None and self.stats.state is not DumpState.COMPLETE:
                with contextlib.suppress(SinkUnavailableError):  # the older state stands, and is as good
                    await self._save()
        await self._report()

    def _for_files(self, types: Mapping[str, str]) -> Source:
        client: Any = self._client
        if not hasattr(client, "for_files"):
            return self._client
        typed = self.config.format in (DumpFormat.PARQUET, DumpFormat.AVRO)
        source: Source = client.for_files(self.config.table, typed=typed, types=types)
        return source

    async def _read_all(self, sink: FileSink, dataset: Dataset, sinks: contextlib.AsyncExitStack) -> None:
        """Reads the table to its end and completes the files. Where a column turns out to need a wider type than its
        first rows had, the files are written again with it, and reading continues."""
        while True:
            try:
                await self._run_splits(sink, dataset)
                break
            except SchemaChangedError as error:
                before = dataset
                dataset = await self._retried(lambda: self._source.describe(self._stream))
                if dataset.schema.names != before.schema.names or dataset.schema.equals(
                    before.schema, check_metadata=True
                ):
                    raise error
                await sink.close()
                sink = await self._rewrite(sink, dataset)
                sinks.push_async_callback(sink.close)
                await sink.open(sink.mark)
        await sink.finish(pa.RecordBatch.from_pylist([], schema=sink.schema))

    async def _rewrite(self, narrow: FileSink, dataset: Dataset) -> FileSink:
        """A sink of the new types with all rows of `narrow`; at any moment the state tells which of both there is."""
        assert self._kept is not None
        sink = self._sink(dataset, narrow.chunked)
        await uninterrupted(asyncio.to_thread(sink.write_again, narrow))
        self._kept = replace(self._kept, mark=sink.mark, types=self._types(dataset), replacing=not narrow.chunked)
        await self._save()
        await uninterrupted(asyncio.to_thread(sink.replace_file))
        self._kept = replace(self._kept, replacing=False)
        await self._save()
        changed = [f.name for f in sink.schema if f.type != narrow.schema.field(f.name).type]
        log.info("%s: written again with wider types of %s", self.config.table, ", ".join(changed))
        return sink

    def _types(self, dataset: Dataset) -> Mapping[str, str]:
        source: Any = self._source
        types: Mapping[str, str] = source.inferred_types(dataset) if hasattr(source, "inferred_types") else {}
        return types

    def _sink(self, dataset: Dataset, chunked: bool | None) -> FileSink:
        """`chunked` None: to be decided by the table's size."""
        config = self.config
        schema = pa.schema([f for f in dataset.schema if f.name not in dataset.hidden])
        avro_schema = None
        if config.format is DumpFormat.AVRO:
            from producer.encoding.schema import derive_value_schema

            avro_schema = derive_value_schema(dataset)
        form = file_format(
            config.format, schema, compress=config.compress, indent=config.indent, avro_schema=avro_schema
        )
        large = (dataset.rows_estimate or 0) > SHEET_ROWS
        if form.may_chunk and (large if chunked is None else chunked):
            form = chunk_per_file(form)
        return FileSink(config.output_dir, config.name, form, schema)

    async def _open(self, sink: FileSink, dataset: Dataset, beginning: Beginning, saved: SavedDump | None) -> None:
        """Opens the files and takes over what the state says; from here on there is a state to save."""
        await sink.open(beginning.mark)
        progress = self.progress
        progress.dumped_rows = progress.rows_before = beginning.rows
        if saved is not None and beginning.mark is not None:
            progress.chunks_completed, progress.started_at = saved.chunks_completed, saved.started_at
        progress.started_at = progress.started_at or utc_now()
        progress.current_offset = current_offset(self.config, beginning.checkpoints, progress.dumped_rows)
        progress.part_done = progress.part_before = part_done(beginning.checkpoints)
        self._checkpoints = {c.split.id: c for c in beginning.checkpoints}
        self._kept = Kept(
            format=str(self.config.format),
            compress=self.config.compress,
            chunked=sink.chunked,
            fingerprint=dataset.fingerprint(self._stream.traversal),
            resume_offset=self.config.start_row,
            mark=sink.mark,
            checkpoints=beginning.checkpoints,
            first_row=beginning.first_row,
            types=self._types(dataset),
        )
        self.stats.files = tuple(sink.paths())
        await self._save()

    async def _run_splits(self, sink: FileSink, dataset: Dataset) -> None:
        """Reads the open splits, up to `max_parallel` side by side, in the order of the table."""
        waiting = deque(c for c in self._checkpoints.values() if not c.done)
        submitting = asyncio.Lock()

        async def read() -> None:
            while waiting:
                await self._read_split(sink, dataset, waiting.popleft(), submitting)

        self._acks = asyncio.Queue()
        if self.config.strategy is DumpStrategy.OFFSET:  # known without asking: the first report has it
            await self._count_total(dataset)
        counting = asyncio.create_task(self._count_total(dataset))
        committing = asyncio.create_task(self._commit(sink))
        readers = [asyncio.create_task(read()) for _ in range(min(self._stream.max_parallel, len(waiting)))]
        try:
            # The first error stops all: a reader's, or the disk's, which only the committing task sees.
            pending: set[asyncio.Task[None]] = {committing, *readers}
            while pending - {committing}:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            # What has been submitted still counts: it is on its way to the disk.
            await _cancelled(counting, *readers)
            self._acks.put_nowait(_Signal.END)
            await asyncio.wait({committing}, timeout=DRAIN_S)
            await _cancelled(committing)
        committing.result()

    async def _read_split(
        self, sink: FileSink, dataset: Dataset, checkpoint: Checkpoint, submitting: asyncio.Lock
    ) -> None:
        split, position = checkpoint.split, checkpoint.position
        reader = await self._retried(lambda: self._source.reader(self._stream, dataset, split))
        if checkpoint.detail is not None and isinstance(reader, RememberingReader):
            reader.restore(checkpoint.detail)
        last, written = False, None
        try:
            while not last:
                await self._going.wait()
                page = await self._retried(partial(reader.fetch, position, self.config.chunk_size))
                chunk = await asyncio.to_thread(sink.prepare, page)
                if written is not None:  # one chunk of a split is fetched and encoded while one is written, no more
                    await asyncio.wait({written})
                async with submitting:  # the order of the acknowledgements is that of the file
                    await self._going.wait()
                    written = await sink.submit(chunk)
                    self._acks.put_nowait(_Ack(split.id, page, chunk, written))
                position, last = page.position, page.last
        finally:
            await reader.close()

    async def _commit(self, sink: FileSink) -> None:
        """Moves the checkpoints as chunks reach the disk, and saves the state after them."""
        while True:
            acks = [await self._acks.get()]
            while not self._acks.empty():
                acks.append(self._acks.get_nowait())
            for ack in acks:
                if isinstance(ack, _Ack):
                    await ack.acked
                    self._apply(ack)
            self.stats.files = tuple(sink.paths())
            await self._save()
            await self._report()
            if _Signal.END in acks:
                return

    def _apply(self, ack: _Ack) -> None:
        assert self._kept is not None
        assert ack.chunk.mark is not None
        before, page = self._checkpoints[ack.split], ack.page
        self._checkpoints[ack.split] = replace(
            before, position=page.position, rows=before.rows + page.rows, done=page.last, detail=page.detail
        )
        checkpoints = tuple(self._checkpoints.values())
        self._kept = replace(self._kept, mark=ack.chunk.mark, checkpoints=checkpoints)
        progress = self.progress
        progress.dumped_rows += page.rows
        progress.chunks_completed += 1 if page.rows else 0
        progress.current_offset = current_offset(self.config, checkpoints, progress.dumped_rows)
        progress.part_done = part_done(checkpoints)
        self.stats.bytes_written += ack.chunk.bytes

    async def _save(self) -> None:
        progress, now = self.progress, utc_now()
        progress.last_updated_at = now
        saved = SavedDump(
            table=self.config.table,
            dumped_rows=progress.dumped_rows,
            current_offset=progress.current_offset,
            chunks_completed=progress.chunks_completed,
            started_at=progress.started_at or now,
            last_updated_at=now,
            is_complete=self.stats.state is DumpState.COMPLETE,
            exact=self._kept,
        )
        await uninterrupted(asyncio.to_thread(state_file.save, self.config, saved))

    async def _report(self) -> None:
        if self._callback is not None and inspect.isawaitable(told := self._callback(self.progress)):
            await told

    async def _count_total(self, dataset: Dataset) -> None:
        """The total for people, during the reading; a source that does not count costs nothing but the number."""
        progress, left = self.progress, 0
        if dataset.rows_estimate is None or progress.total_rows is not None:
            return
        try:
            for checkpoint in list(self._checkpoints.values()):
                part = await self._source.remaining(self._stream, dataset, checkpoint)
                if part is None:
                    return
                left += part
        except ProducerError as error:
            log.debug("%s: the rows could not be counted: %s", self.config.table, error)
            return
        progress.total_rows = progress.rows_before + left

    async def _retried(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, repeated after failures that may pass: `max_retries` times, `retry_backoff` ** n
        seconds apart, or as long as the other side asks."""
        config = self.config
        error: TransientError
        for attempt in itertools.count(1):
            try:
                async with asyncio.timeout(config.batch_timeout):
                    return await work()
            except TransientError as transient:
                error = transient
            except TimeoutError:
                error = RequestTimeoutError(
                    f"Request timeout: {config.table}: no answer in {config.batch_timeout:g} s",
                    hint="raise batch_timeout, or lower chunk_size",
                )
            if attempt > config.max_retries:
                raise error
            wait_s = max(config.retry_backoff**attempt, error.retry_after_s or 0.0)
            log.warning("%s: %s; attempt %d of %d in %.2f s", config.table, error, attempt, config.max_retries, wait_s)
            self.stats.retries += 1
            await sleep(wait_s)
        raise AssertionError("unreachable: the loop ends by return or raise")


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # seen; the first one is what the dump raises
