"""Owns the cost of looking for deleted rows: `python -m benchmarks.deletes [--rows 1000000]`.

A PostgreSQL table is sent to a topic by `producer run`. Then the search of `producer.deletes` is run as a stream would:
once over everything, once more with nothing changed, and once after some rows have been deleted. Each time it says how
long it took, the CPU time of this process, and the time that PostgreSQL was at work (`pg_stat_database.active_time`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adbc_driver_postgresql import dbapi

from benchmarks.kills import make_table
from producer.config import load_config
from producer.deletes import DeleteSearch
from producer.embedded import EmbeddedKafka
from producer.parts import make_source
from tests.faults.killing import finish, start, write_config
from tests.services.databases import Postgres

#: An idle session of PostgreSQL tells its statistics after ten seconds.
_TOLD_AFTER_S = 12.0


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs to look for deleted rows.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--deletes", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as kafka:
        postgres = Postgres()
        postgres.start()
        try:
            make_table(postgres.dsn(), args.rows)
            path = configured(Path(folder), kafka.bootstrap, postgres.dsn())
            (summary,) = finish(start(path, "--once"), timeout_s=600)
            assert summary["acked"] == args.rows
            asyncio.run(measure(path, postgres.dsn(), args))
        finally:
            postgres.close()


def configured(folder: Path, bootstrap: str, dsn: str) -> Path:
    name = f"deletes-{uuid.uuid4().hex[:8]}"
    stream = {"source": "shop", "table": "events", "topic": name, "partitions": 4, "mode": "snapshot_then_tail"}
    return write_config(
        folder,
        {
            "app": name,
            "kafka": {"bootstrap_servers": bootstrap},
            "checkpoints": {"type": "file", "path": str(folder / "state")},
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": dsn}},
            "streams": [{**stream, "deletes": {"every_s": 300}}],
        },
    )


async def measure(path: Path, dsn: str, args: argparse.Namespace) -> None:
    config = load_config(path)
    (stream,) = config.streams
    source = make_source(config, stream.source)
    await source.start()
    search = DeleteSearch(config, stream, source, await source.describe(stream))
    try:
        with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("VACUUM (ANALYZE) events")
            for what, gone in (("first", 0), ("nothing changed", 0), (f"{args.deletes} deleted", args.deletes)):
                if gone:
                    cursor.execute(
                        f"DELETE FROM events WHERE id IN (SELECT 7 + n * {args.rows // gone} FROM "
                        f"generate_series(0, {gone - 1}) n)"
                    )
                with measured(cursor, what):
                    keys = await search.find()
                assert (0 if keys is None else keys.num_rows) == gone
    finally:
        await search.close()
        await source.close()


@contextlib.contextmanager
def measured(cursor: Any, what: str) -> Iterator[None]:
    database = active_s(cursor)
    began, cpu = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    database = active_s(cursor) - database
    print(f"{what:16} {seconds:6.2f} s, {cpu:6.2f} CPU seconds, PostgreSQL at work for {database:5.2f} s", flush=True)


def active_s(cursor: Any) -> float:
    time.sleep(_TOLD_AFTER_S)
    cursor.execute("SELECT active_time / 1000 FROM pg_stat_database WHERE datname = current_database()")
    return float(cursor.fetchone()[0])


if __name__ == "__main__":
    main()
