"""Owns the Kafka sink: pages become finished record batches in threads, and aiokafka's sender delivers them.

Each stream has a connection (an idempotent ``AIOKafkaProducer``, ``acks=all``) of its own, so that one stream's
refused record does not stop the others. A producer that failed once is never used again: after a refusal aiokafka's
sequence numbers and the broker's differ for ever. The next submit makes a new one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, TypedDict, Unpack

import pyarrow as pa
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError

from producer.config import KafkaConfig, StreamConfig
from producer.errors import ProducerError, RecordTooLargeError, SinkUnavailableError
from producer.kafka import (
    SharedAdmin,
    TopicInfo,
    abandon,
    admin,
    client_options,
    cluster_id_of,
    connect,
    ensure_topic,
    translate,
)
from producer.model import Page, position_to_json
from producer.sinks import cloudevents
from producer.sinks.newest_schemas import NewestSchemas
from producer.sinks.record_batch import HEADER_BYTES, FinishedBatch

#: How long pages that are given up may take to notice.
_CLOSE_TIMEOUT_S = 2.0
#: How long a runner that hangs may hold up readers of committed records. A transaction of ours takes about 0.5 s.
_TRANSACTION_TIMEOUT_MS = 20_000
#: Uncompressed size up to which records go into one compressed batch.
_DENSE_BLOCK_BYTES = 4 * 2**20


class RecordBlock(Protocol):
    """Framed records (offset deltas 0 to ``count`` - 1, timestamp deltas 0) that go to one partition."""

    @property
    def partition(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def records(self) -> bytes | memoryview: ...


class _Form(TypedDict):
    partitions: int
    headers: Sequence[tuple[str, bytes]]
    max_block_bytes: int
    timestamp_ms: int


class RecordEncoder(Protocol):
    """Writes rows as framed records, each partition's in the order of the rows.

    RecordTooLargeError for a record that is larger than ``max_block_bytes``.
    """

    def encode(self, batch: pa.RecordBatch, **form: Unpack[_Form]) -> Sequence[RecordBlock]: ...

    def tombstones(self, key_batch: pa.RecordBatch, **form: Unpack[_Form]) -> Sequence[RecordBlock]: ...


@dataclass(frozen=True, slots=True)
class DeadLetterBatches:
    """Dead letters as finished record batches for their own `topic`; `reasons` has the error's class of each."""

    topic: str
    reasons: tuple[str, ...]
    batches: Mapping[int, Sequence[FinishedBatch]]


@dataclass(frozen=True, slots=True)
class PreparedBatches:
    """A page as finished record batches, each partition's in order, and the dead letters of rows that are not there."""

    rows: int
    bytes: int
    batches: Mapping[int, Sequence[FinishedBatch]]
    dead_letters: DeadLetterBatches | None = None


#: What is done with a page around the writer's own way to prepare one.
Around = Callable[[Page, Callable[[Page], PreparedBatches]], PreparedBatches]


class KafkaSink:
    """The broker that all streams write to. `run_id` goes into each record's headers."""

    def __init__(self, config: KafkaConfig, app: str, run_id: str) -> None:
        self._config = config
        self._app = app
        self._run_id = run_id
        self._topics: dict[str, TopicInfo] = {}
        self._asked: dict[str, object] = {}  # how each topic was asked for
        self._writers: set[KafkaWriter] = set()
        self._admin = SharedAdmin()
        self.cluster_id = ""  # of the brokers, once started; '' where they have none
        self._publishing = asyncio.Lock()
        self._state: Connection | None = None
        self.state_topic = config.state_topic or f"{app}.state"
        self.newest_schemas = NewestSchemas(config, self.state_topic, self._put)

    async def start(self) -> None:
        """Proves that the broker is there and takes the credentials."""
        async with admin(self._config) as client, asyncio.timeout(self._config.request_timeout_s):
            self.cluster_id = await cluster_id_of(client)

    async def close(self) -> None:
        await asyncio.gather(*(writer.close() for writer in tuple(self._writers)))
        if self._state is not None:
            await self._state.close()
            self._state = None

    async def ensure_topic(
        self,
        name: str,
        partitions: int | None = None,
        replication_factor: int | None = None,
        topic_config: Mapping[str, str] | None = None,
    ) -> int:
        """How many partitions the topic has, which is made if it is not there; see `producer.kafka.ensure_topic`.

        A topic that was found by the same settings is not asked for again.
        """
        asked = (partitions, replication_factor, dict(topic_config or {}))
        if self._asked.get(name) != asked:
            self._topics[name] = await ensure_topic(
                self._config,
                name,
                partitions=partitions,
                replication_factor=replication_factor,
                topic_config=topic_config,
                administered=self._admin,
            )
        self._asked[name] = asked
        return self._topics[name].partitions

    def writer(
        self,
        stream: StreamConfig,
        encoder: RecordEncoder,
        *,
        fingerprint: bytes | None = None,
        transactional_id: str | None = None,
        around: Around | None = None,
    ) -> KafkaWriter:
        """A writer to ``stream.topic``, for which `ensure_topic` has been called.

        `around` may change each page before it is prepared. `fingerprint` is the value schema's CRC-64-AVRO, given
        where there is no registry: it goes into a header. With a `transactional_id` it is a
        `producer.sinks.transactions.TransactionalWriter`.
        """
        headers = [] if fingerprint is None else [("avro.fingerprint", fingerprint)]
        if self._config.headers:
            headers += [("source", stream.source.encode()), ("run_id", self._run_id.encode())]
        if self._config.headers == "cloudevents":
            headers += cloudevents.stream_headers(self._app, stream.source, stream.name)
        topic = self._topics[stream.topic]
        if transactional_id is None:
            writer = KafkaWriter(self._config, stream.name, topic, encoder, headers)
        else:
            from producer.sinks.transactions import TransactionalWriter

            writer = TransactionalWriter(self._config, stream.name, topic, encoder, headers, transactional=True)
            writer.transactional_id = transactional_id
        writer.around = around
        self._writers.add(writer)
        writer.closed = self._writers.discard
        return writer

    async def publish_schema(self, fingerprint: str, schema: Mapping[str, Any]) -> None:
        """Puts a schema into the state topic under ``schema/<fingerprint>``: for readers, where no registry is."""
        await self._put(f"schema/{fingerprint}", schema)

    async def _put(self, key: str, value: Any) -> None:
        async with self._publishing:
            if self._state is None or self._state.failed:
                await ensure_topic(self._config, self.state_topic, topic_config={"cleanup.policy": "compact"})
                self._state = await Connection.open(self._config, self.state_topic)
            try:
                async with self._state.deadline():
                    await self._state.producer.send_and_wait(
                        self.state_topic, json.dumps(value).encode(), key.encode(), partition=0
                    )
            except Exception as error:
                raise self._state.fail(error) from None


class KafkaWriter:
    """Writes one stream's pages to its topic; see `producer.protocols.PageWriter`."""

    around: Around | None = None
    dead_lettered: Callable[[str], None] | None = None  # told the reason of each dead letter that was acknowledged

    def __init__(
        self,
        config: KafkaConfig,
        stream: str,
        topic: TopicInfo,
        encoder: RecordEncoder,
        headers: Sequence[tuple[str, bytes]],
        *,
        transactional: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._config = config
        self._stream = stream
        self._topic = topic
        self._encoder = encoder
        self._headers = headers
        self._transactional = transactional
        self._now_ms = now_ms
        self._max_batch_bytes = min(config.max_request_size, topic.max_message_bytes)
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self.closed: Callable[[KafkaWriter], object] = lambda writer: None  # told when it is
        self._deliveries: set[asyncio.Task[None]] = set()

    @property
    def max_batch_bytes(self) -> int:
        """What the topic takes, and we send, at once."""
        return self._max_batch_bytes

    def prepare(self, page: Page) -> PreparedBatches:
        """Encodes, frames and compresses. RecordTooLargeError for a record that the topic cannot take alone."""
        return self._prepare(page) if self.around is None else self.around(page, self._prepare)

    def _prepare(self, page: Page) -> PreparedBatches:
        headers = list(self._headers)
        if self._config.headers and page.position is not None:
            position = json.dumps(position_to_json(page.position), separators=(",", ":"))
            headers.append(("position", position.encode()))
        if self._config.compression != "none":
            # The limit is for what goes over the wire, and most data are a fraction of themselves by then.
            try:
                return self._prepared(page, headers, max(self._max_batch_bytes, _DENSE_BLOCK_BYTES))
            except RecordTooLargeError:
                pass
        return self._prepared(page, headers, self._max_batch_bytes - HEADER_BYTES)

    def _prepared(self, page: Page, headers: Sequence[tuple[str, bytes]], max_block_bytes: int) -> PreparedBatches:
        timestamp_ms = self._now_ms()
        form: _Form = {
            "partitions": self._topic.partitions,
            "headers": headers,
            "max_block_bytes": max_block_bytes,
            "timestamp_ms": timestamp_ms,
        }
        mark = b""
        if self._config.headers == "cloudevents":
            mark = cloudevents.new_mark()
            form["headers"] = [*headers, ("ce_id", mark)]
        blocks = list(self._encoder.encode(page.batch, **form))
        if page.tombstones is not None:
            blocks += self._encoder.tombstones(page.tombstones, **form)
        if mark:
            blocks = list(cloudevents.stamped(blocks, mark))
        batches: defaultdict[int, list[FinishedBatch]] = defaultdict(list)
        total_bytes = 0
        for block in blocks:
            batch = FinishedBatch(
                block.records,
                block.count,
                timestamp_ms,
                codec=self._config.compression,
                level=self._config.compression_level,
                transactional=self._transactional,
            )
            if batch.size() > self._max_batch_bytes:
                raise self._too_large(batch.size())
            total_bytes += batch.size()
            batches[block.partition].append(batch)
        return PreparedBatches(page.rows, total_bytes, batches)

    def _too_large(self, size: int) -> RecordTooLargeError:
        of_topic = self._topic.max_message_bytes <= self._config.max_request_size
        limit = f"max.message.bytes of topic {self._topic.name!r}" if of_topic else "kafka.max_request_size"
        return RecordTooLargeError(
            f"stream {self._stream!r}: a record of {size} bytes is over the {self._max_batch_bytes} of {limit}",
            stream=self._stream,
            size=size,
            hint=f"raise {limit}, or exclude a column",
        )

    async def submit(self, prepared: PreparedBatches) -> asyncio.Future[None]:
        """Queues the page's batches behind those before it; SinkUnavailableError when no connection can be made."""
        connection = await self._connected()
        delivery = asyncio.create_task(self._deliver(connection, prepared))
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._delivered)
        return delivery

    def _delivered(self, delivery: asyncio.Task[None]) -> None:
        self._deliveries.discard(delivery)
        if not delivery.cancelled():
            delivery.exception()  # seen: whoever rewinds does not await every page

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is not None and self._connection.failed:
                # Its socket is closed first, so that nothing of it can arrive behind what the new one sends.
                await self._connection.close()
                self._connection = None
            if self._connection is None:
                self._connection = await Connection.open(self._config, self._topic.name)
            return self._connection

    async def _deliver(self, connection: Connection, prepared: PreparedBatches) -> None:
        letters = prepared.dead_letters
        topics = [(self._topic.name, prepared.batches)]
        if letters is not None:
            topics.append((letters.topic, letters.batches))
        try:
            async with connection.deadline():
                await connection.send(topics)
        except Exception as error:  # translated, whatever it is: the caller knows only our errors
            raise connection.fail(error) from None
        if letters is not None and self.dead_lettered is not None:
            for reason in letters.reasons:
                self.dead_lettered(reason)

    async def close(self) -> None:
        async with self._connecting:
            if self._connection is not None:
                self._connection.fail(SinkUnavailableError(f"stream {self._stream!r}: the writer was closed"))
                await self._connection.close()
                self._connection = None
        if self._deliveries:
            await asyncio.wait(set(self._deliveries), timeout=_CLOSE_TIMEOUT_S)
        self.closed(self)


class Connection:
    """One AIOKafkaProducer from its start to its first error, and the order in which batches enter it."""

    def __init__(self, config: KafkaConfig, topic: str, producer: AIOKafkaProducer) -> None:
        self.producer = producer
        self._config = config
        self._topic = topic
        self._turn = asyncio.Lock()  # a fair one
        self._deadlines: set[asyncio.Timeout] = set()
        self._error: ProducerError | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, config: KafkaConfig, topic: str, *, transactional_id: str | None = None) -> Connection:
        producer = AIOKafkaProducer(
            **client_options(config),
            enable_idempotence=True,
            acks="all",
            max_request_size=config.max_request_size,
            transactional_id=transactional_id,
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
        )
        await connect(producer, producer.stop, config, topic=topic)
        return cls(config, topic, producer)

    @property
    def failed(self) -> bool:
        return self._error is not None

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """TimeoutError after ``delivery_timeout_s``, or as soon as the connection fails: aiokafka's waits may hang."""
        async with asyncio.timeout(0 if self.failed else self._config.delivery_timeout_s) as scope:
            self._deadlines.add(scope)
            try:
                yield
            finally:
                self._deadlines.discard(scope)

    async def send(self, topics: Sequence[tuple[str, Mapping[int, Sequence[FinishedBatch]]]]) -> None:
        """Queues a page's batches behind those of the page before, each partition's in order, and waits for their
        acknowledgement.

        The first ones of all partitions come first: they fit into one request, and the second ones wait for it.
        """
        ordered = [
            (place, topic, partition, batch)
            for topic, partitions in topics
            for partition, batches in partitions.items()
            for place, batch in enumerate(batches)
        ]
        ordered.sort(key=itemgetter(0))
        acknowledged: list[asyncio.Future[Any]] = []
        async with self._turn:
            try:
                for _, topic, partition, batch in ordered:
                    acknowledged.append(await self._enqueue(topic, partition, batch))
            except BaseException:
                for future in acknowledged:  # nobody waits for these any more
                    future.add_done_callback(lambda done: done.cancelled() or done.exception())
                raise
        await asyncio.gather(*acknowledged)

    async def _enqueue(self, topic: str, partition: int, batch: FinishedBatch) -> asyncio.Future[Any]:
        while True:
            try:
                future: asyncio.Future[Any] = await self.producer.send_batch(batch, topic, partition=partition)
            except KafkaTimeoutError:
                continue  # aiokafka gives the queue request_timeout_s to move; the page's deadline decides
            return future

    def fail(self, error: BaseException) -> ProducerError:
        """Ends the connection; the error for the page that met it, or for one that was on its way beside that."""
        if self._error is not None:
            return SinkUnavailableError(f"the connection was given up: {self._error.message}", hint=self._error.hint)
        if isinstance(error, TimeoutError):
            error = SinkUnavailableError(
                f"Kafka at {self._config.bootstrap_servers}: topic {self._topic!r}: no acknowledgement within "
                f"{self._config.delivery_timeout_s:g} s",
                hint="is the broker up, the topic still there, and are enough of its replicas in sync?",
            )
        self._error = translate(error, self._config, topic=self._topic, doing="write")
        for scope in self._deadlines:
            if not scope.expired():
                scope.reschedule(0)
        self._closing = asyncio.create_task(abandon(self.producer))
        return self._error

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(abandon(self.producer))
        await asyncio.shield(self._closing)
