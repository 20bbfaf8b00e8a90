"""Owns the naive loop: asyncpg keyset pages, fastavro a row at a time, one ``send`` a record.

What many write first. It is not slowed down: idempotent, zstd, the records in flight are only bounded by aiokafka,
no checkpoint is kept.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from typing import Any

import asyncpg
import httpx
from aiokafka import AIOKafkaProducer
from fastavro import parse_schema, schemaless_writer

from benchmarks.measure import Sample, landed, python, run, sample
from benchmarks.servers import Servers
from benchmarks.tables import Table

_PAGE_ROWS = 5000
_AVRO: dict[str, Any] = {
    "int8": "long",
    "int4": "int",
    "float8": "double",
    "bool": "boolean",
    "text": "string",
    "numeric": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
    "timestamptz": {"type": "long", "logicalType": "timestamp-micros"},
}


def measure(servers: Servers, table: Table) -> Sample:
    servers.url("postgres", table)
    with servers.topics() as (topic,):
        command = python(
            "benchmarks.peers.naive", servers.dsn(), table.name, topic, servers.bootstrap, servers.registry.url
        )
        return sample(run(command), landed(servers.bootstrap, [topic]), table.rows)


async def stream(dsn: str, table: str, topic: str, bootstrap: str, registry: str) -> None:
    connection = await asyncpg.connect(dsn)
    query = await connection.prepare(f"SELECT * FROM {table} WHERE id > $1 ORDER BY id LIMIT {_PAGE_ROWS}")
    columns = [(a.name, _AVRO[a.type.name]) for a in query.get_attributes()]
    record = {
        "type": "record",
        "name": "row",
        "fields": [{"name": n, "type": t if n == "id" else ["null", t]} for n, t in columns],
    }
    key = {"type": "record", "name": "key", "fields": [{"name": "id", "type": "long"}]}
    key_id, value_id = [
        await _register(registry, f"{topic}-{s}", what) for s, what in (("key", key), ("value", record))
    ]
    key_schema, value_schema = parse_schema(key), parse_schema(record)

    def framed(schema_id: int, schema: Any, row: Any) -> bytes:
        out = io.BytesIO()
        out.write(b"\0" + schema_id.to_bytes(4, "big"))
        schemaless_writer(out, schema, row)
        return out.getvalue()

    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        enable_idempotence=True,
        compression_type="zstd",
        linger_ms=20,
        max_batch_size=512 * 1024,
    )
    async with producer:
        last = 0
        while rows := await query.fetch(last):
            for row in rows:
                await producer.send(
                    topic, framed(value_id, value_schema, dict(row)), key=framed(key_id, key_schema, {"id": row["id"]})
                )
            last = rows[-1]["id"]
        await producer.flush()
    await connection.close()


async def _register(registry: str, subject: str, schema: Any) -> int:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{registry}/subjects/{subject}/versions", json={"schema": json.dumps(schema)})
        answer.raise_for_status()
        return int(answer.json()["id"])


if __name__ == "__main__":
    asyncio.run(stream(*sys.argv[1:6]))
