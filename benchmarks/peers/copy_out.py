"""Owns the limit of the source: the whole table by binary COPY, thrown away as it comes."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import asyncpg

from benchmarks.measure import Sample, WrongResult, python, run
from benchmarks.servers import Servers
from benchmarks.tables import Table


def measure(servers: Servers, table: Table) -> Sample:
    servers.url("postgres", table)
    used = run(python("benchmarks.peers.copy_out", servers.dsn(), table.name))
    told = json.loads(used.stdout)
    if told["rows"] != table.rows:
        raise WrongResult(f"COPY gave {told['rows']:,} rows instead of {table.rows:,}")
    return Sample(
        table.rows,
        told["seconds"],
        told["bytes"] / told["seconds"] / 1e6,
        used.cpu_s,
        used.peak_rss_bytes / 1e6,
        startup_s=told["started_at"] - used.started_at,
        total_s=told["started_at"] + told["seconds"] - used.started_at,
    )


async def copy(dsn: str, table: str) -> None:
    size = 0

    async def count(data: bytes) -> None:
        nonlocal size
        size += len(data)

    connection = await asyncpg.connect(dsn)
    started_at = time.time()
    status = await connection.copy_from_query(f"SELECT * FROM {table}", output=count, format="binary")
    seconds = time.time() - started_at
    await connection.close()
    print(json.dumps({"rows": int(status.split()[1]), "seconds": seconds, "started_at": started_at, "bytes": size}))


if __name__ == "__main__":
    asyncio.run(copy(*sys.argv[1:3]))
