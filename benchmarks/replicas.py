"""Owns what a second worker adds: `python -m benchmarks.replicas [--rows 400000] [--rounds 3] [--cpu 0.4]`, as root.

Workers that share one table (`coordination: kafka`), each with a limit of CPU as a pod has (`resources.limits.cpu`: the
quota of a control group) and busy up to it by hashing the columns of each row `--cost` times over (`transforms: mask`).
Two limits of 0.4 leave PostgreSQL and the broker more than a core, so that two cores are cores enough. The same work is
done by one worker and by two; the rate is that of the middle three fifths of the records by the broker's clock, so that
start-up, planning and the group's first assignment are not in it. How idle the machine was is printed beside it: where
nothing was left, the cores were the limit and not the workers.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adbc_driver_postgresql import dbapi

from benchmarks.measure import landed
from producer.embedded import EmbeddedKafka
from tests.faults.killing import write_config
from tests.services.databases import Postgres

UNITS = 12
COLUMNS = 4
GROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 20_000
ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a second worker adds to the first one's rate.")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cost", type=int, default=8, help="how often each column is hashed")
    parser.add_argument("--cpu", type=float, default=0.4, help="the cores that a worker may use")
    args = parser.parse_args()
    broker = {"log.message.timestamp.type": "LogAppendTime"}
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka(config=broker) as kafka:
        postgres = Postgres()
        postgres.start()
        try:
            make_table(postgres.dsn(), args.rows)
            ratios = []
            for number in range(args.rounds):
                (one, _), (two, idle) = (
                    run(Path(folder), kafka.bootstrap, postgres.dsn(), args, workers) for workers in (1, 2)
                )
                ratios.append(two / one)
                print(
                    f"round {number + 1}: one worker {one:,.0f} rows/s, two {two:,.0f}: the second adds "
                    f"{ratios[-1] - 1:.2f} of the first's rate (with two, {idle:.2f} cores were idle)",
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


@contextlib.contextmanager
def limited(cpu: float) -> Iterator[Path]:
    """A control group (version 1 or 2) whose processes get `cpu` cores; its file that takes them."""
    name = f"replicas-{uuid.uuid4().hex[:8]}"
    quota_us = int(PERIOD_US * cpu)
    try:
        if (GROUPS / "cpu").is_dir():
            group = GROUPS / "cpu" / name
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (GROUPS / "cgroup.subtree_control").write_text("+cpu")
            group = GROUPS / name
            group.mkdir()
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
    except OSError as error:
        sys.exit(f"a control group with a limit of CPU cannot be made here ({error}): run as root")
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def idle_s() -> float:
    """The seconds that this machine's cores have been idle, in all."""
    return float(Path("/proc/uptime").read_text().split()[1])


def run(folder: Path, bootstrap: str, dsn: str, args: argparse.Namespace, workers: int) -> tuple[float, float]:
    """The rows a second of so many workers, each with its own limit of CPU, and the cores that were idle meanwhile."""
    name = f"replicas-{uuid.uuid4().hex[:8]}"
    stream: dict[str, Any] = {
        "source": "shop",
        "table": "busy",
        "topic": name,
        "partitions": 4,
        "page_size": 500,  # small ones: whoever has the last wave of large ones in the window seems faster
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
    command = [sys.executable, "-m", "producer", "run", str(config), "--once"]
    with contextlib.ExitStack() as stack:
        groups = [stack.enter_context(limited(args.cpu)) for _ in range(workers)]
        idle, began = idle_s(), time.monotonic()
        running = [
            subprocess.Popen([sys.executable, "-c", ENTER, str(group), *command], stderr=subprocess.DEVNULL)
            for group in groups
        ]
        codes = [process.wait() for process in running]
        idle_cores = (idle_s() - idle) / (time.monotonic() - began)
    if any(codes):
        sys.exit(f"the workers ended with {codes}; what they say: producer run {config} --once")
    times = landed(bootstrap, [name]).appended_s
    if len(times) != args.rows:
        sys.exit(f"{len(times):,} records instead of {args.rows:,}")
    fifth = args.rows // 5
    return float(3 * fifth / (times[4 * fifth] - times[fifth])), idle_cores


if __name__ == "__main__":
    main()
