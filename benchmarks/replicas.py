"""Owns what a second worker adds: `python -m benchmarks.replicas [--rows 100000] [--rounds 3] [--cost 20]`.

Workers that share one table (`coordination: kafka`), each bound to one core and kept busy there by hashing the columns
of each row `--cost` times over (`transforms: mask`), so that database and broker need little beside them. The same work
is done by one worker and by two; the rate is that of the middle three fifths of the records by the broker's clock, so
that start-up, planning and the group's first assignment are not in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from adbc_driver_postgresql import dbapi

from benchmarks.measure import landed
from producer.embedded import EmbeddedKafka
from tests.faults.killing import write_config
from tests.services.databases import Postgres

UNITS = 12
COLUMNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="What a second worker adds to the first one's rate.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cost", type=int, default=20, help="how often each column is hashed")
    args = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("two cores are needed")
    broker = {"log.message.timestamp.type": "LogAppendTime"}
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka(config=broker) as kafka:
        postgres = Postgres()
        postgres.start()
        try:
            make_table(postgres.dsn(), args.rows)
            ratios = []
            for number in range(args.rounds):
                rates = [run(Path(folder), kafka.bootstrap, postgres.dsn(), args, workers) for workers in (1, 2)]
                ratios.append(rates[1] / rates[0])
                print(
                    f"round {number + 1}: one worker {rates[0]:,.0f} rows/s, two {rates[1]:,.0f}: the second adds "
                    f"{ratios[-1] - 1:.2f} of the first's rate",
                    flush=True,
                )
            print(f"median: the second adds {statistics.median(ratios) - 1:.2f}")
        finally:
            postgres.close()


def make_table(dsn: str, rows: int) -> None:
    texts = ", ".join(f"md5((g * 100 + {n})::text) AS c{n}" for n in range(COLUMNS))
    with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE busy AS SELECT g::bigint AS id, {texts} FROM generate_series(1, {rows}) g")
        cursor.execute("ALTER TABLE busy ADD PRIMARY KEY (id)")
        cursor.execute("ANALYZE busy")


def run(folder: Path, bootstrap: str, dsn: str, args: argparse.Namespace, workers: int) -> float:
    """The rows a second of so many workers, each on a core of its own."""
    name = f"replicas-{uuid.uuid4().hex[:8]}"
    stream: dict[str, Any] = {
        "source": "shop",
        "table": "busy",
        "topic": name,
        "partitions": 4,
        "page_size": 2000,
        "max_parallel": UNITS,
        "transforms": [{"mask": [f"c{n}" for n in range(COLUMNS)], "salt": "pepper and salt"}] * args.cost,
    }
    config = write_config(
        folder,
        {
            "app": name,
            "kafka": {"bootstrap_servers": bootstrap, "state_partitions": UNITS},
            "checkpoints": {"type": "kafka"},
            "coordination": "kafka",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": dsn}},
            "streams": [stream],
        },
    )
    running = [
        subprocess.Popen(
            ["taskset", "--cpu-list", str(core), sys.executable, "-m", "producer", "run", str(config), "--once"],
            stderr=subprocess.DEVNULL,
        )
        for core in range(workers)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"the workers ended with {codes}; what they say: producer run {config} --once")
    times = landed(bootstrap, [name]).appended_s
    if len(times) != args.rows:
        sys.exit(f"{len(times):,} records instead of {args.rows:,}")
    fifth = args.rows // 5
    return float(3 * fifth / (times[4 * fifth] - times[fifth]))


if __name__ == "__main__":
    main()
