"""The topic's side: all its committed records, with their values in the stream's present schema."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from producer.config import Config, StreamConfig
from producer.encoding.schema import crc64_fingerprint
from producer.parts import Schemas
from producer.verify.compare import Side
from producer.verify.datum import Convert, converter, read_datum
from producer.verify.source_side import Counts

PREFIX_BYTES = 5  # of the registry's framing
PARTITIONS_AT_ONCE = 3


class TopicSide:
    """Reads the topic by a plain consumer, from its beginning to where it ended at the start."""

    def __init__(
        self,
        config: Config,
        stream: StreamConfig,
        schemas: Schemas,
        registry: Any,
        partitions: int,
        counts: Counts,
    ) -> None:
        self._config = config
        self._topic = stream.topic
        self._schemas = schemas
        self._registry = registry
        self._partitions = partitions
        self._counts = counts
        self._prefix = PREFIX_BYTES if registry is not None else 0
        self._fingerprint = crc64_fingerprint(schemas.value)
        #: by a value's prefix or its header's fingerprint; None: it is in the current schema
        self._versions: dict[bytes, Convert | None] = {}
        self._published: dict[bytes, Any] | None = None

    async def hash_into(self, side: Side) -> None:
        """All records, some partitions side by side; those of one partition in their order."""

        async def take(batch: Sequence[Any]) -> None:
            values = await self._values(batch)
            count = len(batch)
            hashes = np.fromiter((hash(value) for value in values), np.int64, count)
            keys = hashes if self._schemas.key is None else np.fromiter(self._key_hashes(batch), np.int64, count)
            tombstones = np.fromiter((value is None for value in values), np.bool_, count)
            hashes[tombstones] = 0
            side.add(keys, hashes, tombstones)
            self._counts.records += count

        await self._read(take)

    async def find(self, wanted: set[int]) -> dict[int, tuple[str, bytes | None]]:
        """The names and last values of the keys with these hashes."""
        found: dict[int, tuple[str, bytes | None]] = {}

        async def take(batch: Sequence[Any]) -> None:
            hits = [index for index, key in enumerate(self._key_hashes(batch)) if key in wanted]
            if hits:
                values = await self._values(batch)
                for index in hits:
                    key = batch[index].key
                    found[hash(key[self._prefix :])] = (self._key_text(key), values[index])

        if self._schemas.key is not None:
            await self._read(take)
        return found

    async def _read(self, take: Callable[[Sequence[Any]], Coroutine[Any, Any, None]]) -> None:
        from aiokafka.errors import KafkaError

        from producer.kafka import client_options, translate
        from producer.proof import committed_records

        places = asyncio.Semaphore(PARTITIONS_AT_ONCE)

        async def read(partition: int) -> None:
            async with places:
                async for batch in committed_records(client_options(self._config.kafka), self._topic, partition):
                    await take(batch)

        try:
            async with asyncio.TaskGroup() as group:
                for partition in range(self._partitions):
                    group.create_task(read(partition))
        except BaseExceptionGroup as errors:
            first = next(leaves(errors))
            if isinstance(first, KafkaError | OSError):  # TimeoutError is an OSError
                raise translate(first, self._config.kafka, topic=self._topic, doing="read") from None
            raise first from None

    def _key_hashes(self, batch: Iterable[Any]) -> Iterable[int]:
        start = self._prefix
        return (hash((record.key or b"")[start:]) for record in batch)

    async def _values(self, batch: Sequence[Any]) -> list[bytes | None]:
        """The values in the current schema; as they are where that cannot be had, so that they differ."""
        versions = [self._version(record) for record in batch]
        for version in set(versions) - self._versions.keys():
            self._versions[version] = await self._learn(version)
        if all(convert is None for convert in self._versions.values()):
            start = self._prefix
            return [None if record.value is None else record.value[start:] for record in batch]
        return [self._current(record.value, version) for record, version in zip(batch, versions, strict=True)]

    def _version(self, record: Any) -> bytes:
        if record.value is None:
            return self._fingerprint
        if self._prefix:
            return bytes(record.value[:PREFIX_BYTES])
        for name, value in record.headers:
            if name == "avro.fingerprint":
                return bytes(value)
        return self._fingerprint

    def _current(self, value: bytes | None, version: bytes) -> bytes | None:
        if value is None:
            return None
        convert = self._versions[version]
        if convert is None:
            return value[self._prefix :]
        converted = convert(value[self._prefix :])
        return value if converted is None else converted

    async def _learn(self, version: bytes) -> Convert | None:
        if version == self._fingerprint:
            return None
        schema: Any = None
        if self._prefix:
            if version[:1] == b"\0" and len(version) == PREFIX_BYTES:
                schema = await self._registry.schema(int.from_bytes(version[1:], "big"))
        else:
            schema = (await self._schemas_published()).get(version)
        if schema is None:
            return lambda value: None
        if crc64_fingerprint(schema) == self._fingerprint:
            return None
        return converter(schema, self._schemas.value)

    async def _schemas_published(self) -> dict[bytes, Any]:
        if self._published is None:
            from producer.kafka import client_options, topic_partitions
            from producer.proof import published_schemas

            topic = self._config.state_topic
            there = await topic_partitions(self._config.kafka, topic)
            self._published = await published_schemas(client_options(self._config.kafka), topic) if there else {}
        return self._published

    def _key_text(self, key: bytes | None) -> str:
        values = read_datum(self._schemas.key, self._schemas.key, (key or b"")[self._prefix :])
        if values is None:
            return f"(not readable: {(key or b'').hex()[:60]})"
        return ", ".join(f"{name}={value}" for name, value in values.items())


def leaves(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors of a tree of groups."""
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
