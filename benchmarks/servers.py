"""Owns the servers of a benchmark: broker, registry and databases of its own, and what becomes of topics."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.tables import Table, drop_postgres, fill_mariadb, fill_postgres, fill_sqlite
from producer.embedded import EmbeddedKafka
from tests.services.databases import MariaDB, Postgres
from tests.services.registry import Registry

DATABASE = "bench"

#: The broker says when each batch was appended; a deleted topic's disk space is free at once.
_BROKER = {
    "log.message.timestamp.type": "LogAppendTime",
    "log.segment.delete.delay.ms": "100",
    "log.segment.bytes": "268435456",
    "auto.create.topics.enable": "false",
}


@dataclass
class Servers:
    """Started at their first use, except the broker, which everybody needs; stopped by `stack`."""

    stack: contextlib.ExitStack
    folder: Path
    kafka: EmbeddedKafka
    _registry: Registry | None = None
    _postgres: Postgres | None = None
    _mariadb: MariaDB | None = None
    _filled: set[tuple[str, str, int]] = field(default_factory=set)

    @property
    def bootstrap(self) -> str:
        return self.kafka.bootstrap

    @property
    def registry(self) -> Registry:
        if self._registry is None:
            self._registry = Registry()
            self.stack.callback(self._registry.close)
            self._registry.start()
        return self._registry

    @property
    def postgres(self) -> Postgres:
        if self._postgres is None:
            self._postgres = Postgres("max_wal_size=2GB", "checkpoint_timeout=30min")
            self.stack.callback(self._postgres.close)
            self._postgres.start()
        return self._postgres

    @property
    def mariadb(self) -> MariaDB:
        if self._mariadb is None:
            self._mariadb = MariaDB()
            self.stack.callback(self._mariadb.close)
            self._mariadb.start()
        return self._mariadb

    def dsn(self) -> str:
        return self.postgres.dsn()

    def url(self, database: str, table: Table) -> str:
        """A database that has the table, as the product's configuration names it."""
        here = (database, table.name, table.rows)
        match database:
            case "postgres":
                if here not in self._filled:
                    asyncio.run(fill_postgres(self.dsn(), table))
                made = self.dsn()
            case "mariadb":
                if here not in self._filled:
                    fill_mariadb(self.mariadb.port, DATABASE, table)
                made = self.mariadb.url(DATABASE)
            case _:
                path = self.folder / f"{table.name}.db"
                if here not in self._filled:
                    fill_sqlite(path, table)
                made = f"sqlite:///{path}"
        self._filled.add(here)
        return made

    def drop(self, tables: Sequence[Table]) -> None:
        """Gives the disk space of PostgreSQL tables back."""
        for table in tables:
            asyncio.run(drop_postgres(self.dsn(), table))
            self._filled.discard(("postgres", table.name, table.rows))

    @contextlib.contextmanager
    def topics(self, count: int = 1, partitions: int = 4) -> Iterator[list[str]]:
        """New topics, deleted afterwards."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        names = [f"bench-{uuid.uuid4().hex[:10]}" for _ in range(count)]
        made = admin.create_topics([NewTopic(name, partitions, 1) for name in names])
        for future in made.values():
            future.result(60)
        try:
            yield names
        finally:
            for future in admin.delete_topics(names).values():
                future.result(60)


@contextlib.contextmanager
def running() -> Iterator[Servers]:
    """The servers, and a folder for what belongs to them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        kafka = stack.enter_context(EmbeddedKafka(heap_mib=512, config=_BROKER))
        yield Servers(stack, folder, kafka)
