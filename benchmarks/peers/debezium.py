"""Owns Debezium's PostgreSQL snapshot in Kafka Connect: flat Avro, its schema registered beforehand.

That is its fastest form with a registry: a converter that looks schemas up at each record is about a third slower.
Archives come from Maven Central, pinned in ``connect.lock`` (a role, the SHA-256, coordinates, classifier, packaging).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg

from benchmarks.measure import Counter, Sample, Use, landed, run, sample
from benchmarks.servers import Servers
from benchmarks.tables import Table
from producer.embedded import cache_dir, fetch_artifact, fetch_jars, find_java, free_port, only_one

_LOCK = Path(__file__).parent.parent / "connect.lock"
_HEAP = "2g"  # what Kafka Connect's own start script gives it


def unpacked() -> Path:
    """The folder with ``worker`` and ``plugins`` jars; fetched (30 MB, once) where it is not there yet."""
    text = _LOCK.read_text()
    folder = cache_dir() / f"connect-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    with only_one(cache_dir()), tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        whole = Path(scratch, "whole")
        with ThreadPoolExecutor(8) as pool:
            wanted = [
                (role, pool.submit(fetch_artifact, Path(scratch), *rest))
                for role, *rest in (line.split() for line in text.splitlines())
            ]
            for role, future in wanted:
                place = whole / role
                place.mkdir(parents=True, exist_ok=True)
                if future.result().suffix == ".gz":
                    with tarfile.open(future.result()) as tar:
                        tar.extractall(place, filter="data")
                else:
                    shutil.copy(future.result(), place)
        whole.rename(folder)
    return folder


def measure(servers: Servers, table: Table) -> Sample:
    servers.url("postgres", table)
    schemas = f"{table.name}-{table.rows}"
    prepared = servers.folder / f"{schemas}.registered"
    if not prepared.exists():
        few = Table(f"{table.name}_few", 10, table.columns)
        with servers.topics() as (topic,):
            _snapshot(servers, few, topic, schemas, register=True)
        prepared.touch()
    with servers.topics() as (topic,):
        used = _snapshot(servers, table, topic, schemas, register=False)
        return sample(used, landed(servers.bootstrap, [topic]), table.rows)


def _snapshot(servers: Servers, table: Table, topic: str, schemas: str, *, register: bool) -> Use:
    slot = f"bench_{uuid.uuid4().hex[:8]}"
    plugins = unpacked() / "plugins"
    with tempfile.TemporaryDirectory(dir=servers.folder) as folder:
        worker = Path(folder, "worker.properties")
        connector = Path(folder, "connector.properties")
        _write(worker, _worker(servers, plugins, Path(folder, "offsets"), schemas, register))
        _write(connector, _connector(servers, table, topic, slot))
        classes = os.pathsep.join(f"{place}/*" for place in (unpacked() / "worker", fetch_jars()))
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        command = [str(find_java()), "-Xms256m", f"-Xmx{_HEAP}", "-XX:+UseG1GC", "-cp", classes, main]
        counter = Counter(servers.bootstrap, topic)
        try:
            return run([*command, str(worker), str(connector)], done=lambda: counter() >= table.rows, timeout_s=1800)
        finally:
            counter.close()
            asyncio.run(_drop_slot(servers.dsn(), slot))


def _worker(servers: Servers, plugins: Path, offsets: Path, schemas: str, register: bool) -> Mapping[str, object]:
    registry = servers.registry.url.replace("/apis/ccompat/v7", "/apis/registry/v2")
    settings: dict[str, object] = {
        "bootstrap.servers": servers.bootstrap,
        "listeners": f"http://127.0.0.1:{free_port()}",
        "plugin.path": plugins,
        "plugin.discovery": "only_scan",
        "offset.storage.file.filename": offsets,
        "offset.flush.interval.ms": 10_000,
        "producer.compression.type": "zstd",
        "producer.linger.ms": 20,
        "producer.batch.size": 524_288,
        "producer.buffer.memory": 67_108_864,
    }
    for part in ("key", "value"):
        settings |= {
            f"{part}.converter": "io.apicurio.registry.utils.converter.AvroConverter",
            f"{part}.converter.apicurio.registry.url": registry,
            f"{part}.converter.apicurio.registry.artifact.artifact-id": f"{schemas}-{part}",
            f"{part}.converter.apicurio.registry.auto-register": str(register).lower(),
            f"{part}.converter.apicurio.registry.find-latest": str(not register).lower(),
        }
    return settings


def _connector(servers: Servers, table: Table, topic: str, slot: str) -> Mapping[str, object]:
    address = servers.dsn().rpartition("@")[2]
    host, _, rest = address.partition(":")
    port, _, database = rest.partition("/")
    return {
        "name": slot,
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": 1,
        "database.hostname": host,
        "database.port": port,
        "database.user": "postgres",
        "database.password": "postgres",
        "database.dbname": database,
        "topic.prefix": slot,
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "publication.name": slot,
        "publication.autocreate.mode": "filtered",
        "table.include.list": f"public.{table.name}",
        "snapshot.mode": "initial_only",
        "snapshot.fetch.size": 10_240,
        "max.batch.size": 8192,
        "max.queue.size": 32_768,
        "transforms": "flat,route",
        "transforms.flat.type": "io.debezium.transforms.ExtractNewRecordState",
        "transforms.route.type": "org.apache.kafka.connect.transforms.RegexRouter",
        "transforms.route.regex": ".*",
        "transforms.route.replacement": topic,
    }


def _write(path: Path, settings: Mapping[str, object]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


async def _drop_slot(dsn: str, slot: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active",
            slot,
        )
        await connection.execute(f"DROP PUBLICATION IF EXISTS {slot}")
    finally:
        await connection.close()
