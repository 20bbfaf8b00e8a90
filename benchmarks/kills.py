"""Owns the long kill -9 run: `python -m benchmarks.kills [--kills 50] [--rows 1000000] [--workers 3 --delivery ...]`.

The same as `tests/faults/test_kill.py`, at the size that the guarantees are stated for: a PostgreSQL table, both
traversals and each guarantee, killed at random moments and started again until it is done. Every invariant is asserted
after each kill; what is printed is how much was sent twice and how soon the first new record was there.

With `--workers` several processes share the work (`tests/faults/test_shared_work.py`): one of them is killed each time,
and replaced; what is printed is also for how long nothing was appended.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from adbc_driver_postgresql import dbapi

from producer.embedded import EmbeddedKafka
from producer.unit import WINDOW_PAGES
from tests.audit import TopicAudit
from tests.faults.killing import kill_until_done, write_config
from tests.faults.workers import kill_workers_until_done, shared_configuration, verified
from tests.services.databases import Postgres

KEY_SCHEMA = {"type": "record", "name": "k", "fields": [{"name": "id", "type": "long"}]}
PAGE_ROWS = 5000
UNITS = 12


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
    parser.add_argument("--workers", type=int, default=1, help="that share the work, each with --rows-per-s")
    parser.add_argument("--delivery", nargs="+", default=["exactly_once", "at_least_once"], help="with --workers")
    parser.add_argument("--between-s", type=float, nargs=2, default=[1.5, 5.5], help="the next kill, with --workers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as kafka:
        postgres = Postgres()
        postgres.start()
        try:
            make_table(postgres.dsn(), args.rows)
            if args.workers > 1:
                for delivery in args.delivery:
                    run_workers(Path(folder), kafka.bootstrap, postgres.dsn(), delivery, args)
                return
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


def run_workers(folder: Path, bootstrap: str, dsn: str, delivery: str, args: argparse.Namespace) -> None:
    """One table to one new topic by workers that share it, one of them killed again and again."""
    name, began = f"kills-{uuid.uuid4().hex[:8]}", time.monotonic()
    config = shared_configuration(
        folder, bootstrap, dsn, name, delivery=delivery, rows_per_s=args.rows_per_s, units=UNITS, page_size=1000
    )
    isolation = "read_committed" if delivery == "exactly_once" else "read_uncommitted"
    audit, whole = TopicAudit(bootstrap, name, KEY_SCHEMA, isolation=isolation), TopicAudit(bootstrap, name, KEY_SCHEMA)
    try:
        killed = kill_workers_until_done(
            config,
            "events",
            range(1, args.rows + 1),
            audit,
            whole,
            workers=args.workers,
            kills=args.kills,
            between_s=tuple(args.between_s),
            seed=1,
            timeout_s=900,
        )
    finally:
        audit.close()
        whole.close()
    assert killed.duplicates == 0 or delivery != "exactly_once", f"{killed.duplicates} records are there twice"
    found = verified(config, "events")
    one_kill = sorted(seconds for seconds, kills in killed.standstills if kills == 1)
    longest_s, kills_in_it = max(killed.standstills)
    print(
        f"{delivery}: {killed.kills} kills of {args.workers} workers in {time.monotonic() - began:.0f} s, "
        f"{UNITS} units: {len(audit.keys):,} keys, none missing; {killed.duplicates:,} of {killed.records:,} records "
        f"are there twice, at most {max(killed.duplicates_per_kill):,} after a kill; {killed.checks} looks at the "
        f"checkpoints, none ahead; nothing appended after one kill for {statistics.median(one_kill):.1f} s (median of "
        f"{len(one_kill)}), at most {one_kill[-1]:.1f} s; at most {longest_s:.1f} s where {kills_in_it} kills fell "
        f"into it; verify: "
        f"{found['source_rows']:,} rows agree",
        flush=True,
    )


if __name__ == "__main__":
    main()
