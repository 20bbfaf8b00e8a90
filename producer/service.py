"""Owns a run: all configured streams over one sink and one checkpoint store, from start to drained stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from producer.concealment import tellable
from producer.config import Config
from producer.cores import cores
from producer.errors import ConfigError, PermanentError, ProducerError, StandbyError, unexpected
from producer.inflight import ByteBudget
from producer.lineage import lineage
from producer.logs import redactor
from producer.metrics import Metrics
from producer.model import Between, Json, Split, position_to_json
from producer.parts import Parts, open_parts
from producer.pipeline import wait_for_any
from producer.protocols import Source, TellingSource
from producer.status import StreamStatus
from producer.stream import Stream
from producer.tracing import Trace, tracing
from producer.unit import Engine

log = structlog.get_logger("producer")

STARTING_SIDE_BY_SIDE = 8
CLOSE_DEADLINE_S = 10.0
_MAX_ENCODERS = 8


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What a run did with one stream; `position` is that of its splits as JSON, by split id."""

    stream: str
    rows: int
    acked: int
    bytes: int
    seconds: float
    rows_per_second: float
    position: Json
    state: str
    error: str | None = None

    def to_json(self) -> Json:
        out: dict[str, Json] = {
            "stream": self.stream,
            "rows": self.rows,
            "acked": self.acked,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
            "position": self.position,
            "state": self.state,
        }
        if self.error is not None:
            out["error"] = self.error
        return out


class Service:
    """Runs a configuration. `streams` is live while it runs; `run` may be awaited once."""

    def __init__(
        self,
        config: Config,
        *,
        metrics: Metrics,
        run_id: str,
        parts: Callable[[Config, str], Awaitable[Parts]] = open_parts,
    ) -> None:
        self.config = config
        self.run_id = run_id
        self._metrics = metrics
        self._open_parts = parts
        self._streams: dict[str, Stream] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._restarted = asyncio.Event()
        self.ready = False

    @property
    def streams(self) -> Mapping[str, StreamStatus]:
        """The status of each stream by name; empty before `run` has begun."""
        return {name: stream.status for name, stream in self._streams.items()}

    @property
    def failed_at_start(self) -> bool:
        """Streams have failed, and none after it had started moving rows."""
        failed = [s for s in self._streams.values() if s.failure is not None]
        return bool(failed) and not any(s.started for s in failed)

    async def pause(self, name: str) -> None:
        """Pauses one stream; KeyError for a name that is not configured. See `Stream.pause`."""
        await self._streams[name].pause()

    async def resume(self, name: str) -> None:
        """Resumes one stream; KeyError for a name that is not configured. See `Stream.pause`."""
        await self._streams[name].resume()

    async def replay(self, name: str, wanted: Between) -> Split:
        """Reads a range of rows of a stream once more, also of one that is complete. See `Stream.replay`."""
        stream = self._streams[name]
        split = await stream.replay(wanted)
        task = self._tasks.get(name)
        if task is not None and task.done():
            self._tasks[name] = self._task(stream)
            self._restarted.set()
        return split

    async def run(self, *, once: bool, stop: asyncio.Event) -> list[StreamSummary]:
        """Runs until every stream is done (`once`), or until `stop` is set and all is drained.

        Raises ProducerError only where nothing could begin: a part that all streams share is not there, or a
        stream's configuration is wrong. A stream that fails later is reported in its summary.
        """
        with tracing(self.config.app, enabled=self.config.opentelemetry) as trace:
            async with lineage(self.config, lambda: self.streams, redactor(self.config)):
                return await self._run(trace, once=once, stop=stop)

    async def _run(self, trace: Trace, *, once: bool, stop: asyncio.Event) -> list[StreamSummary]:
        config = self.config
        parts = await self._open_parts(config, self.run_id)
        executor = ThreadPoolExecutor(encoder_threads(), thread_name_prefix="encode")
        engine = Engine(
            store=parts.store,
            open_writer=parts.open_writer,
            open_source=parts.open_source,
            leave=parts.leave,
            identify=parts.identify,
            budget=ByteBudget(config.kafka.max_inflight_bytes),
            executor=executor,
            stop=stop,
            once=once,
            give_up_after_s=config.retry_timeout_s,
            stands_by=config.coordination == "redis",
            exactly_once=config.delivery == "exactly_once",
            open_search=parts.open_search,
            trace=trace,
        )
        try:
            kind = stream_class(config)
            for stream in config.streams:
                metrics = self._metrics.stream(stream.name, stream.source, stream.topic)
                self._streams[stream.name] = kind(stream, parts.sources[stream.source], engine, metrics)
            for name, source in parts.sources.items():
                self._listen(name, source)
            if await self._started(stop):
                self.ready = True
                async with sharing(config, self._streams.values(), stop):
                    await self._run_all(once, stop)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            await self._close(parts)
        return [self._summary(stream) for stream in self._streams.values()]

    def _listen(self, source_name: str, source: Source) -> None:
        """Passes on what a source tells by itself."""
        if not isinstance(source, TellingSource):
            return

        def of(name: str) -> list[Stream]:
            return [s for s in self._streams.values() if s.config.source == source_name and name in ("", s.config.name)]

        def news(name: str) -> None:
            for stream in of(name):
                stream.wake.set()

        def waited(name: str, seconds: float) -> None:
            for stream in of(name):
                stream.waited(seconds)

        def asked_again(name: str, reason: str) -> None:
            for stream in of(name):
                stream.asked_again(reason)

        source.on_news, source.on_wait, source.on_retry = news, waited, asked_again

    async def _started(self, stop: asyncio.Event) -> bool:
        """Whether all is started before `stop` is set: until then nothing moves, and nothing is to be drained."""
        starting, stopping = asyncio.create_task(self._start_all()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                return True
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
        for stream in self._streams.values():
            stream.stopped_early()
        return False

    async def _start_all(self) -> None:
        """Starts every stream before any moves a row, so that a wrong configuration is known while nothing has
        happened. One stream's trouble that is not the configuration's is its own: the others go on."""
        places = asyncio.Semaphore(STARTING_SIDE_BY_SIDE)

        async def start(stream: Stream) -> ProducerError | None:
            async with places:
                try:
                    await stream.start()
                except ProducerError as error:
                    return tellable(error, stream.config, None)
                except Exception as error:  # whatever it is: it is this stream's failure
                    return unexpected(error)
            return None

        streams = list(self._streams.values())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(start(stream)) for stream in streams]
        errors = [task.result() for task in tasks]
        for error in errors:
            if isinstance(error, ConfigError):
                raise error
        found = [error for error in errors if error is not None]
        if found and len(found) == len(streams) and not any(isinstance(error, StandbyError) for error in found):
            raise found[0]
        for stream, error in zip(streams, errors, strict=True):
            if isinstance(error, PermanentError):
                await stream.fail(error)

    async def _run_all(self, once: bool, stop: asyncio.Event) -> None:
        self._tasks = {name: self._task(stream) for name, stream in self._streams.items() if stream.failure is None}
        stopping = asyncio.create_task(stop.wait())
        try:
            while (pending := self._pending()) and not stop.is_set():
                await asyncio.wait({*pending, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not once and not stop.is_set() and not self._pending():
                    log.info("all streams are at rest", hint="use --once to stop when caught up; Ctrl-C stops")
                    self._restarted.clear()
                    await wait_for_any(stop, self._restarted)
            if not once:
                await stopping
            if pending := self._pending():
                _, pending = await asyncio.wait(pending, timeout=self.config.shutdown_timeout_s)
            if pending:
                log.warning(
                    "not drained in time: what is not acknowledged will be sent again",
                    timeout_s=self.config.shutdown_timeout_s,
                )
        finally:
            stopping.cancel()
            for task in self._tasks.values():
                task.cancel()
            results = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    def _task(self, stream: Stream) -> asyncio.Task[None]:
        return asyncio.create_task(stream.run(), name=f"stream {stream.config.name}")

    def _pending(self) -> set[asyncio.Task[Any]]:
        return {task for task in self._tasks.values() if not task.done()}

    async def _close(self, parts: Parts) -> None:
        async def close(part: Any) -> None:
            try:
                async with asyncio.timeout(CLOSE_DEADLINE_S):
                    await part.close()
            except TimeoutError:
                log.warning("did not close in time", part=type(part).__name__)
            except ProducerError as error:
                log.warning("did not close cleanly", part=type(part).__name__, error=str(error))

        for part in (*self._streams.values(), *parts.sources.values(), *parts.clients, parts.store):
            await close(part)

    @staticmethod
    def _summary(stream: Stream) -> StreamSummary:
        status = stream.status
        seconds = status.seconds
        return StreamSummary(
            stream=status.name,
            rows=status.rows_read,
            acked=status.rows_acked,
            bytes=status.bytes_acked,
            seconds=seconds,
            rows_per_second=status.rows_acked / max(1e-9, seconds),
            position={name: position_to_json(s.checkpoint.position) for name, s in status.named_splits},
            state=status.state,
            error=status.error,
        )


def encoder_threads() -> int:
    """Threads that prepare pages: one core is left to the event loop and to those that read. Where transforms hold the
    interpreter's lock, more threads than cores cost half as much again for handing it round."""
    return max(1, min(_MAX_ENCODERS, cores() - 1))


def stream_class(config: Config) -> type[Stream]:
    """How a stream is run: whole, or in the units that this process owns."""
    if config.coordination != "kafka":
        return Stream
    from producer.coordination.sharing import SharedStream

    return SharedStream


@asynccontextmanager
async def sharing(config: Config, streams: Collection[Stream], stop: asyncio.Event) -> AsyncIterator[None]:
    """Membership of the application's group meanwhile, where processes share the work; not once `stop` is set."""
    if config.coordination != "kafka":
        yield
        return
    from producer.coordination.membership import Membership
    from producer.coordination.sharing import SharedStream

    shared = [stream for stream in streams if isinstance(stream, SharedStream)]

    async def assigned(partitions: Collection[int]) -> None:
        await asyncio.gather(*(stream.own(partitions) for stream in shared))

    async def revoked(partitions: Collection[int]) -> None:
        await asyncio.gather(*(stream.disown(partitions) for stream in shared))

    membership = Membership(config.kafka, config.app, config.state_topic, assigned=assigned, revoked=revoked)
    joining, stopping = asyncio.create_task(membership.start()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({joining, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if joining.done():
            await joining
        yield
    finally:
        joining.cancel()
        stopping.cancel()
        await asyncio.gather(joining, stopping, return_exceptions=True)
        await membership.close()
