"""Owns the measurement of the dump service: a table through a loopback JSONSQL server over PostgreSQL, to files.

    python -m benchmarks.dump [--rows N] [--latency-ms MS] [--database postgresql://...] [--rounds N]

Each dump is a ``producer dump`` process of its own against a server process of its own, as its users have it; rates
are the best of the rounds, from the first request to the last byte on the disk, and memory is the process's peak.
The table has, as such tables do, more in a row than is asked for: about 500 bytes, of which a quarter is dumped.
The goals: ID_RANGE at least 3 times OFFSET and above 33,000 rows/s, Parquet and Avro no slower, under 200 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.services.databases import Postgres

SCHEMA = {
    "id": "integer",
    "mac": "text",
    "login": "text",
    "disabled": "boolean",
    "balance": "float",
    "seen": "integer",
    "last_seen": "timestamp",
    "ip": "text",
    "note": "text",
}
_FILL = """
CREATE TABLE terminal AS SELECT i AS id, '00:1A:79:' || lpad(to_hex(i), 8, '0') AS mac, 'user' || i AS login,
    i % 3 = 0 AS disabled, i * 0.25::float8 AS balance, 1700000000 + i AS seen,
    timestamp '2025-12-15' + i * interval '1 second' AS last_seen, '10.0.' || i % 200 || '.' || i % 256 AS ip,
    CASE WHEN i % 4 = 0 THEN 'note ' || i END AS note, repeat(md5(i::text), 12) AS settings
FROM generate_series(1, $ROWS) AS i
"""


@dataclass(frozen=True)
class Measured:
    """One dump: rows a second of the whole path, and the process's peak memory."""

    format: str
    strategy: str
    rows_per_s: float
    peak_mb: float


async def fill(dsn: str, rows: int) -> str:
    """The table in a new database; its DSN."""
    admin = await asyncpg.connect(dsn)
    await admin.execute("DROP DATABASE IF EXISTS dump_benchmark")
    await admin.execute("CREATE DATABASE dump_benchmark")
    await admin.close()
    made = dsn.rpartition("/")[0] + "/dump_benchmark"
    connection = await asyncpg.connect(made)
    await connection.execute(_FILL.replace("$ROWS", str(rows)))
    await connection.execute("ALTER TABLE terminal ADD PRIMARY KEY (id)")
    await connection.execute("VACUUM ANALYZE terminal")
    await connection.close()
    return made


@contextmanager
def database(dsn: str | None) -> Iterator[str]:
    """The given server, or one of our own."""
    if dsn is not None:
        yield dsn
        return
    postgres = Postgres()
    postgres.start()
    try:
        yield postgres.dsn()
    finally:
        postgres.close()


@contextmanager
def server(dsn: str, latency_ms: float) -> Iterator[str]:
    """The URL of a loopback server, a process of its own."""
    command = [sys.executable, "-m", "tests.jsonsql", dsn, "--latency-ms", str(latency_ms)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def measure(url: str, folder: Path, form: str, strategy: str) -> Measured:
    """One dump in a process of its own."""
    schema = folder / "schema.json"
    columns = [{"name": name, "type": kind} for name, kind in SCHEMA.items()]
    schema.write_text(json.dumps({"tables": {"terminal": {"columns": columns}}}))
    command = [sys.executable, "-m", "producer", "dump", "terminal", "--source", url, "--format", form]
    command += ["--strategy", strategy, "--max-parallel", "3", "--no-resume", "--json"]
    command += ["--schema-file", str(schema), "--output-dir", str(folder / "dumps")]
    env = {**os.environ, "IPTVPORTAL_USERNAME": "user", "IPTVPORTAL_PASSWORD": "secret"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    summary = json.loads(process.stdout.read())
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"the dump failed: {summary['error']}")
    # Linux counts the peak in kilobytes, macOS in bytes.
    peak_mb = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Measured(form, strategy, summary["rows_per_second"], peak_mb)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dump", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--latency-ms", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--database", help="a PostgreSQL server; default: one of its own")
    args = parser.parse_args()
    cases = [("jsonl", "offset"), *((form, "id_range") for form in ("jsonl", "csv", "json", "parquet", "avro"))]
    found: dict[tuple[str, str], list[Measured]] = {case: [] for case in cases}
    with database(args.database) as dsn, tempfile.TemporaryDirectory() as folder:
        made = asyncio.run(fill(dsn, args.rows))
        with server(made, args.latency_ms) as url:
            for _ in range(args.rounds):
                for case in cases:
                    found[case].append(measure(url, Path(folder), *case))
    print(f"{args.rows:,} rows, {args.latency_ms:g} ms latency a request, chunks of 5,000, best of {args.rounds}")
    print(f"{'format':<10}{'strategy':<10}{'rows/s':>10}{'peak MB':>10}")
    for rounds in found.values():
        best = max(rounds, key=lambda m: m.rows_per_s)
        peak_mb = max(m.peak_mb for m in rounds)
        print(f"{best.format:<10}{best.strategy:<10}{best.rows_per_s:>10,.0f}{peak_mb:>10.0f}")
    rates = {case: max(m.rows_per_s for m in rounds) for case, rounds in found.items()}
    print(f"ID_RANGE over OFFSET: {rates['jsonl', 'id_range'] / rates['jsonl', 'offset']:.1f}")


if __name__ == "__main__":
    main()
