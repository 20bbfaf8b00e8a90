"""Owns the search for rows that have been deleted: keys that are on the topic and no longer in the source.

The topic itself is the memory of what has been sent: its keys are read first, then the source's, each once, 17 bytes a
key and in files when they are many (see `producer.reconcile`). A key found on the topic had been in the source before,
so one that the source then does not have has been deleted. What one search cannot see yet, the next one does.
"""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Iterable
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from producer.config import Config, StreamConfig
from producer.encoding.arrow_avro import AvroEncoder
from producer.encoding.schema import derive_key_schema
from producer.model import Dataset, Position
from producer.protocols import Source
from producer.reconcile import Side, compare

PAGE_ROWS = 20_000
#: Tombstones that one search sends at most; the next one goes on.
MOST = 100_000
_PREFIX_BYTES = 5  # of the registry's framing


async def deleted_keys(config: Config, stream: StreamConfig, source: Source, dataset: Dataset) -> pa.RecordBatch | None:
    """The keys to delete, as columns of the key; None where there are none. ProducerError where a side is not there."""
    schema = pa.schema([dataset.schema.field(name).with_nullable(False) for name in dataset.key])
    key_schema = derive_key_schema(dataset)
    key = AvroEncoder(key_schema, schema)
    with Side() as ours, Side() as theirs:
        async for records in _records(config, stream):
            hashes = np.fromiter((hash(k) for k in _keys(config, records)), np.int64, len(records))
            gone = np.fromiter((record.value is None for record in records), np.bool_, len(records))
            theirs.add(hashes, np.zeros(len(records), np.int64), gone)
        async for batch in _source_keys(stream, source, dataset):
            keys = await asyncio.to_thread(key.encode, batch.select(list(dataset.key)).cast(schema))
            data, ends = bytes(keys.data), keys.offsets.tolist()
            found = (hash(data[start:end]) for start, end in itertools.pairwise(ends))
            ours.add(np.fromiter(found, np.int64, len(keys)), np.zeros(len(keys), np.int64), True)
        wanted = (await asyncio.to_thread(compare, ours, theirs, MOST)).unexpected_keys
    if not wanted:
        return None
    texts: set[bytes] = set()
    async for records in _records(config, stream):
        texts.update(k for k in _keys(config, records) if hash(k) in wanted)
    parsed = fastavro.parse_schema(dict(key_schema or {}))
    rows: list[Any] = [fastavro.schemaless_reader(io.BytesIO(text), parsed, None) for text in texts]
    columns = [
        pa.array([_stored(row[avro["name"]], field) for row in rows], field.type)
        for field, avro in zip(schema, (key_schema or {})["fields"], strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _stored(value: Any, field: pa.Field) -> Any:
    return str(value) if pa.types.is_string(field.type) else value


def _keys(config: Config, records: Iterable[Any]) -> Iterable[bytes]:
    start = _PREFIX_BYTES if config.schema_registry is not None else 0
    return ((record.key or b"")[start:] for record in records)


async def _records(config: Config, stream: StreamConfig) -> AsyncIterator[list[Any]]:
    """Lists of the topic's records, each partition's in order."""
    from aiokafka.errors import KafkaError

    from producer.kafka import client_options, topic_partitions, translate
    from producer.proof import committed_records

    try:
        for partition in range(await topic_partitions(config.kafka, stream.topic) or 0):
            async for batch in committed_records(client_options(config.kafka), stream.topic, partition):
                yield batch
    except (KafkaError, OSError) as error:  # TimeoutError is an OSError
        raise translate(error, config.kafka, topic=stream.topic, doing="read") from None


async def _source_keys(stream: StreamConfig, source: Source, dataset: Dataset) -> AsyncIterator[pa.RecordBatch]:
    """All keys that the source has, page by page in the order of the key, of a query of its own."""
    plain = stream.model_copy(
        update={
            "name": f"{stream.name} keys", "mode": "snapshot", "columns": dataset.key, "exclude": (),
            "key": dataset.key, "order_by": None, "on_bad_record": "fail",
        }
    )  # fmt: skip
    described = await source.describe(plain)
    for split in await source.plan(plain, described):
        reader = await source.reader(plain, described, split)
        position: Position | None = None
        try:
            last = False
            while not last:
                page = await reader.fetch(position, PAGE_ROWS)
                yield page.batch
                position, last = page.position, page.last
        finally:
            await reader.close()
