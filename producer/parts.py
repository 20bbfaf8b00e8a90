"""Owns the wiring: which source, sink and store a configuration names, and how a stream's writer is made of them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from producer.checkpoints import STORES
from producer.config import Config, StreamConfig
from producer.errors import ConfigError, ProducerError
from producer.identity import Identity
from producer.model import Dataset, Json
from producer.protocols import CheckpointStore, LendingStore, OneSessionSource, PageWriter, Source
from producer.sources import ONE_SESSION, SOURCES
from producer.unit import Identify, Leave, OpenSearch, OpenSource, OpenWriter, left, opened, origin_of

if TYPE_CHECKING:
    from producer.deletes import DeleteSearch
    from producer.encoding.names import KnownNames
    from producer.encoding.registry import RegistryClient
    from producer.sinks.kafka import Around, KafkaSink, KafkaWriter
    from producer.transforms import Transform


@dataclass(frozen=True, slots=True)
class Schemas:
    """A stream's Avro schemas as parsed JSON; `key` is None for a stream without a key."""

    key: Json
    value: Json


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of, started and ready."""

    sources: Mapping[str, Source]
    store: CheckpointStore
    open_writer: OpenWriter
    open_search: OpenSearch | None = None
    open_source: OpenSource = opened
    leave: Leave = left
    identify: Identify = origin_of
    clients: Sequence[Any] = ()  # what else is to be closed, after the sources and before the store


def make_source(config: Config, name: str) -> Source:
    """The configured source, not yet started."""
    settings = config.sources[name]
    module, factory, _ = SOURCES[settings.type]
    source: Source = getattr(importlib.import_module(module), factory)(settings)
    return source


def make_store(config: Config) -> CheckpointStore:
    """The configured checkpoint store, not yet started."""
    module, factory = STORES[config.checkpoints.type]
    store: CheckpointStore = getattr(importlib.import_module(module), factory)(config)
    return store


def make_registry(config: Config) -> RegistryClient | None:
    """The configured schema registry's client, or None where none is configured."""
    if config.schema_registry is None:
        return None
    from producer.encoding.registry import RegistryClient

    return RegistryClient(config.schema_registry)


class PastSchemas(Protocol):
    """Where the versions of a topic's schemas are: a registry, or the state topic."""

    async def known_names(self, topic: str, key: Json, value: Json) -> tuple[KnownNames, KnownNames]:
        """The names in all versions of the topic's key and value schema that these would be the next versions of."""
        ...


def past_schemas(config: Config, registry: RegistryClient | None) -> PastSchemas:
    """For who writes nothing: the registry, which has been started, or what the state topic says now."""
    if registry is not None:
        return registry
    from producer.sinks.newest_schemas import NewestSchemas

    return NewestSchemas(config.kafka, config.state_topic)


async def settled_schemas(stream: StreamConfig, dataset: Dataset, past: PastSchemas) -> Schemas:
    """The stream's schemas, in which each field holds the column that it has held in the versions before.
    SchemaIncompatibleError where it cannot."""
    first = schemas_of(stream, dataset)
    return schemas_of(stream, dataset, await past.known_names(stream.topic, first.key, first.value))


def schemas_of(stream: StreamConfig, dataset: Dataset, known: tuple[KnownNames, KnownNames] | None = None) -> Schemas:
    """The stream's schemas: the source's fixed ones, the user's .avsc checked against the table, or derived ones;
    with transforms, of the columns as they leave. `known` are the names in the versions before, of key and value;
    without them the schemas are those of a first version."""
    from producer.encoding.schema import NO_NAMES, derive_key_schema, derive_value_schema

    known_in_key, known_in_value = known or (NO_NAMES, NO_NAMES)

    transform = transform_of(stream, dataset)
    if transform is not None:
        dataset = transform.dataset
    value = dataset.value_schema
    if stream.schema_file is not None:
        from producer.encoding.schema import check_schema

        value = read_schema_file(stream)
        check_schema(value, dataset, known_in_value)
    return Schemas(
        key=dataset.key_schema or derive_key_schema(dataset, known_in_key),
        value=value or derive_value_schema(dataset, known_in_value),
    )


def transform_of(stream: StreamConfig, dataset: Dataset) -> Transform | None:
    """The stream's transforms for what its source describes; None where it has none."""
    if not stream.transforms:
        return None
    from producer.transforms import compile_transforms

    return compile_transforms(stream.transforms, dataset, stream=stream.name)


def read_schema_file(stream: StreamConfig) -> Mapping[str, Json]:
    """The .avsc that `schema` names; ConfigError where it is not there or not JSON."""
    assert stream.schema_file is not None
    path = Path(stream.schema_file)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"stream {stream.name!r}: schema file {path.name!r}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"stream {stream.name!r}: schema file {path.name!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"stream {stream.name!r}: schema file {path.name!r} holds no Avro record schema")
    return found


def identity_of(config: Config, stream: StreamConfig, dataset: Dataset, cluster_id: str) -> Identity:
    """What the stream's checkpoint belongs to."""
    query = dataset.query_fingerprint(stream.traversal)
    return dataset.origin.also(query, app=config.app, topic=stream.topic, kafka_cluster=cluster_id)


async def open_parts(config: Config, run_id: str) -> Parts:
    """Makes and starts all parts, each before the ones that need it; ProducerError from the first that cannot."""
    from producer.sinks.kafka import KafkaSink

    sources = {name: make_source(config, name) for name in dict.fromkeys(s.source for s in config.streams)}
    sink = KafkaSink(config.kafka, config.app, run_id)
    store = make_store(config)
    registry = make_registry(config)
    everything: list[Any] = [sink, store, *sources.values(), *([registry] if registry else [])]
    turns = _Turns(config, sources, store) if config.coordination == "redis" else None
    for_one = () if turns is None else [sources[name] for name in turns.closed]
    try:
        async with asyncio.TaskGroup() as group:
            for part in everything:
                if part not in for_one:
                    group.create_task(part.start())
    except BaseException as error:
        for part in everything:
            with contextlib.suppress(ProducerError):
                await part.close()
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None
        raise

    async def open_writer(
        stream: StreamConfig, dataset: Dataset, unit: str, dead_lettered: Callable[[str], None]
    ) -> PageWriter[Any]:
        transactional_id = None
        if config.delivery == "exactly_once":
            transactional_id = cast(LendingStore, store).transactional_id(unit)
        return await open_kafka_writer(stream, dataset, sink, registry, transactional_id, dead_lettered)

    def open_search(stream: StreamConfig, dataset: Dataset) -> DeleteSearch:
        from producer.deletes import DeleteSearch

        return DeleteSearch(config, stream, sources[stream.source], dataset)

    def identify(stream: StreamConfig, dataset: Dataset) -> Identity:
        return identity_of(config, stream, dataset, sink.cluster_id)

    clients = [sink, *([registry] if registry else [])]
    if turns is None:
        return Parts(sources, store, open_writer, open_search, identify=identify, clients=clients)
    return Parts(sources, store, open_writer, open_search, turns.open_source, turns.leave, identify, clients)


class _Turns:
    """Who may use what one process may use at a time, where the others stand by: streams, and sessions.

    A session is claimed as a stream is, under a name that no stream has, before its source is started. The source is
    closed as soon as another process may have the claim.
    """

    def __init__(self, config: Config, sources: Mapping[str, Source], store: CheckpointStore) -> None:
        from producer.checkpoints.redis import RedisCheckpointStore

        assert isinstance(store, RedisCheckpointStore)  # the configuration has seen to it
        self._config, self._sources, self._store = config, sources, store
        self._claims = {
            f"source {config.app}.{name}": name for name in sources if config.sources[name].type in ONE_SESSION
        }
        self._opening = asyncio.Lock()
        self._left: set[str] = set()
        self.closed = set(self._claims.values())
        store.lost = self._lost

    async def open_source(self, name: str) -> None:
        async with self._opening:
            for claim in [claim for claim, source in self._claims.items() if source == name and name in self.closed]:
                await self._store.claim(claim)
                try:
                    await self._sources[name].start()
                except BaseException:
                    await self._store.release(claim)
                    raise
                self.closed.discard(name)

    def _lost(self, claim: str) -> None:
        name = self._claims.get(claim)
        if name is not None:
            self._close(name)

    def _close(self, name: str) -> None:
        self.closed.add(name)
        source = self._sources[name]
        assert isinstance(source, OneSessionSource)
        source.give_up()

    async def leave(self, stream: StreamConfig) -> None:
        await self._store.release(stream.name)
        self._left.add(stream.name)
        for claim, name in self._claims.items():
            if all(s.name in self._left for s in self._config.streams if s.source == name) and name not in self.closed:
                self._close(name)
                await self._store.release(claim)


async def open_kafka_writer(
    stream: StreamConfig,
    dataset: Dataset,
    sink: KafkaSink,
    registry: RegistryClient | None,
    transactional_id: str | None = None,
    dead_lettered: Callable[[str], None] | None = None,
) -> KafkaWriter:
    """Registers the schemas, makes the topic, and joins encoder and sink. Nothing is sent before all of it is well."""
    from producer.encoding.arrow_avro import AvroEncoder
    from producer.encoding.records import RecordEncoder
    from producer.encoding.schema import crc64_fingerprint

    past = sink.newest_schemas if registry is None else registry
    schemas, transform = await settled_schemas(stream, dataset, past), transform_of(stream, dataset)
    columns = dataset.schema if transform is None else transform.dataset.schema
    key_prefix = value_prefix = b""
    fingerprint: bytes | None = None
    if registry is not None:
        if schemas.key is not None:
            key_prefix = await registry.register(stream.topic, schemas.key, is_key=True)
        value_prefix = await registry.register(stream.topic, schemas.value, is_key=False)
    else:
        await sink.newest_schemas.follow(stream.topic, schemas.key, schemas.value)
        fingerprint = crc64_fingerprint(schemas.value)
        for schema in filter(None, (schemas.key, schemas.value)):
            await sink.publish_schema(crc64_fingerprint(schema).hex(), schema)
    await sink.ensure_topic(stream.topic, stream.partitions, stream.replication_factor, stream.topic_config)
    key = AvroEncoder(schemas.key, columns, prefix=key_prefix) if schemas.key is not None else None
    value = AvroEncoder(schemas.value, columns, prefix=value_prefix)
    around: Around | None = None if transform is None else lambda page, prepare: prepare(transform.page(page))
    if stream.on_bad_record == "dead_letter":
        from producer.sinks.dead_letters import DeadLetters

        letters = await open_letters_writer(stream, sink, registry, transactional_id)
        around = DeadLetters(stream, dataset, transform, letters).around
    writer = sink.writer(
        stream,
        RecordEncoder(key, value, stream=stream.name),
        fingerprint=fingerprint,
        transactional_id=transactional_id,
        around=around,
    )
    writer.dead_lettered = dead_lettered
    return writer


async def open_letters_writer(
    stream: StreamConfig, sink: KafkaSink, registry: RegistryClient | None, transactional_id: str | None = None
) -> KafkaWriter:
    """The writer of the stream's dead letters, to a topic made like the stream's own."""
    from producer.encoding.arrow_avro import AvroEncoder
    from producer.encoding.records import RecordEncoder
    from producer.encoding.schema import crc64_fingerprint
    from producer.sinks import dead_letters

    topic = dead_letters.topic_of(stream)
    prefixes = [b"", b""]
    fingerprint: bytes | None = None
    schemas = (dead_letters.KEY_SCHEMA, dead_letters.SCHEMA)
    if registry is not None:
        prefixes = [await registry.register(topic, schema, is_key=i == 0) for i, schema in enumerate(schemas)]
    else:
        fingerprint = crc64_fingerprint(dead_letters.SCHEMA)
        for schema in schemas:
            await sink.publish_schema(crc64_fingerprint(schema).hex(), schema)
    await sink.ensure_topic(topic, stream.partitions, stream.replication_factor, stream.topic_config)
    key, value = (
        AvroEncoder(schema, dead_letters.ARROW_SCHEMA, prefix=prefix)
        for schema, prefix in zip(schemas, prefixes, strict=True)
    )
    return sink.writer(
        stream.model_copy(update={"topic": topic}),
        RecordEncoder(key, value, stream=stream.name),
        fingerprint=fingerprint,
        transactional_id=transactional_id,
    )
