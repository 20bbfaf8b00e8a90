"""Owns the long kill -9 run: `python -m benchmarks.kills [--kills 50] [--rows 1000000]`.

The same as `tests/faults/test_kill.py`, at the size that the guarantees are stated for: a PostgreSQL table, both
traversals and each guarantee, killed at random moments and started again until it is done. Every invariant is asserted
after each kill; what is printed is how much was sent twice and how soon the first new record was there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import uuid
from pathlib import Path
from typing import Any

from adbc_driver_postgresql import dbapi

from producer.embedded import EmbeddedKafka
from producer.unit import WINDOW_PAGES
from tests.audit import TopicAudit
from tests.faults.killing import kill_until_done, write_config
from tests.services.databases import Postgres

KEY_SCHEMA = {"type": "record", "name": "k", "fields": [{"name": "id", "type": "long"}]}
PAGE_ROWS = 5000


def make_table(dsn: str, rows: int) -> None:
    """The table of the comparison: nine columns, about 200 bytes a row."""
    with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE events AS SELECT g::bigint AS id, g % 1000 AS account_id, 'kind' || g % 9 AS kind, "
            "(g % 100000 / 100.0)::numeric(12,2) AS amount, random() AS ratio, g % 2 = 0 AS active, "
            "now() - g * interval '1 s' AS created_at, repeat(md5(g::text), 2) AS payload, "
            f"nullif(md5(g::text), md5((g - g % 5)::text)) AS tags FROM generate_series(1, {rows}) g"
        )
        cursor.execute("ALTER TABLE events ADD PRIMARY KEY (id)")
        cursor.execute("ANALYZE events")


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills runs at random moments and checks what is left.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rows-per-s", type=int, default=15_000, help="so that a run is long enough to be killed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as kafka:
        postgres = Postgres()
        postgres.start()
        try:
            make_table(postgres.dsn(), args.rows)
            for traversal, guarantee in (("ID_RANGE", "file"), ("OFFSET", "file"), ("ID_RANGE", "exactly_once")):
                run(Path(folder), kafka.bootstrap, postgres.dsn(), traversal, guarantee, args)
        finally:
            postgres.close()


def run(folder: Path, bootstrap: str, dsn: str, traversal: str, guarantee: str, args: argparse.Namespace) -> None:
    """One table to one new topic, killed again and again."""
    name, exactly_once = f"kills-{uuid.uuid4().hex[:8]}", guarantee == "exactly_once"
    splits = 3 if traversal == "ID_RANGE" else 1
    stream: dict[str, Any] = {
        "source": "shop",
        "table": "events",
        "topic": name,
        "partitions": 4,
        "traversal": traversal,
        "page_size": PAGE_ROWS,
        "max_parallel": splits,
        "max_rows_per_s": args.rows_per_s,
    }
    config = write_config(
        folder,
        {
            "app": name,
            "kafka": {"bootstrap_servers": bootstrap},
            "checkpoints": {"type": "kafka"} if exactly_once else {"type": "file", "path": name},
            "delivery": "exactly_once" if exactly_once else "at_least_once",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": dsn}},
            "streams": [stream],
        },
    )
    audit = TopicAudit(bootstrap, name, KEY_SCHEMA, isolation="read_committed" if exactly_once else "read_uncommitted")
    window = 0 if exactly_once else splits * WINDOW_PAGES * PAGE_ROWS
    try:
        keys = [(n,) for n in range(1, args.rows + 1)]
        killed = kill_until_done(config, "events", keys, audit, kills=args.kills, window=window, seed=1)
    finally:
        audit.close()
    twice = killed.duplicates_per_kill
    first = killed.seconds_to_first_record
    print(
        f"{traversal:8} {guarantee:12} {killed.kills} kills: {len(audit.keys):,} keys, none missing; sent twice: "
        f"{sum(twice):,} in all, at most {max(twice):,} after a kill (bound {window:,}); first new record after "
        f"{statistics.median(first):.2f} s, at most {max(first):.2f} s"
    )


if __name__ == "__main__":
    main()
