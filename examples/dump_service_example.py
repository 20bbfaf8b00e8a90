"""The dump service from Python: each way of using it as a function of its own.

With your own operator::

    IPTVPORTAL_DOMAIN=operator IPTVPORTAL_USERNAME=user IPTVPORTAL_PASSWORD=... \\
        python examples/dump_service_example.py

Without one, a loopback server over a SQLite file (`python -m tests.jsonsql FILE` prints its URL)::

    IPTVPORTAL_URL=http://127.0.0.1:PORT IPTVPORTAL_USERNAME=user IPTVPORTAL_PASSWORD=secret \\
        python examples/dump_service_example.py

The API tells no column names: ``IPTVPORTAL_SCHEMA_FILE`` names a file that does, such as iptvportal_schema.yaml beside
this one. Without it columns are field_0, field_1 and so on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from producer.dump import (
    AsyncDumpManager,
    DumpConfig,
    DumpFormat,
    DumpProgress,
    DumpService,
    DumpStats,
    DumpStrategy,
)
from producer.errors import ProducerError
from producer.sources.iptvportal import AsyncIPTVPortalClient, Q


async def single_table(output_dir: Path) -> DumpStats:
    """One table as lines of JSON."""
    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(
            table="tv_channel",
            output_dir=output_dir,
            format=DumpFormat.JSONL,  # or CSV, PARQUET, JSON, AVRO
            chunk_size=5000,
        )

        service = DumpService(client)
        stats = await service.dump(config)

        print(f"Dumped {stats.progress.dumped_rows} rows")
        print(f"Output: {config.output_dir}/tv_channel.jsonl")
        return stats


async def several_tables(output_dir: Path) -> list[DumpStats]:
    """Tables side by side, each with a state of its own."""
    configs = [
        DumpConfig(table="tv_channel", output_dir=output_dir),
        DumpConfig(table="tv_program", output_dir=output_dir),
        DumpConfig(table="media", output_dir=output_dir),
    ]

    async with AsyncIPTVPortalClient() as client:
        service = DumpService(client)
        all_stats = await service.dump_many(configs, max_concurrent=2)

        for stats in all_stats:
            print(f"{stats.config.table}: {stats.progress.dumped_rows} rows")
        return all_stats


async def progress_while_it_runs(output_dir: Path) -> list[float]:
    """A callback after each chunk."""
    seen = []

    def progress_callback(progress: DumpProgress) -> None:
        pct = progress.percent_complete()
        throughput = progress.rows_per_second()
        eta = progress.eta_seconds()
        print(f"\r{pct:5.1f}% | {throughput:6.0f} rows/s | ETA {eta:5.0f}s", end="")
        seen.append(pct)

    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(table="tv_program", output_dir=output_dir, chunk_size=100)
        await DumpService(client).dump(config, progress_callback=progress_callback)
    print()
    return seen


def every_option(output_dir: Path) -> DumpConfig:
    """All options with their defaults."""
    return DumpConfig(
        table="tv_channel",
        output_dir=output_dir,
        chunk_size=5000,  # rows a request
        strategy=DumpStrategy.OFFSET,  # or ID_RANGE
        format=DumpFormat.JSONL,
        compress=False,  # gzip
        resume=True,  # from the state file
        resume_offset=0,  # in the place of the state's offset
        order_by="id ASC",
        where_clause=None,  # a Q, or JSONSQL
        batch_timeout=30.0,  # seconds a request
        max_retries=3,
        retry_backoff=1.5,  # 1.5, 2.25, 3.375 seconds
        max_parallel=3,  # ranges side by side (ID_RANGE)
    )


async def id_range(output_dir: Path) -> DumpStats:
    """A large table: ranges of its ids side by side."""
    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(
            table="terminal",  # has a numeric id
            output_dir=output_dir,
            strategy=DumpStrategy.ID_RANGE,
            chunk_size=5000,
        )
        return await DumpService(client).dump(config)


async def compressed_lines(output_dir: Path) -> list[dict[str, Any]]:
    """gzip, read back line by line."""
    import gzip

    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(table="tv_channel", output_dir=output_dir, format=DumpFormat.JSONL, compress=True)
        await DumpService(client).dump(config)
    with gzip.open(output_dir / "tv_channel.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


async def csv_with_pandas(output_dir: Path) -> Any:
    """CSV for spreadsheets, read by pandas."""
    import pandas as pd

    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(table="subscriber", output_dir=output_dir, format=DumpFormat.CSV)
        await DumpService(client).dump(config)
    df = pd.read_csv(output_dir / "subscriber.csv")
    print(df.describe())
    return df


async def parquet_with_duckdb(output_dir: Path) -> int:
    """Parquet, one file a chunk, counted by DuckDB."""
    import duckdb

    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(table="media", output_dir=output_dir, format=DumpFormat.PARQUET, chunk_size=10000)
        await DumpService(client).dump(config)
    pattern = str(output_dir / "media-*.parquet")
    ((count,),) = duckdb.execute("SELECT COUNT(*) FROM read_parquet(?)", [pattern]).fetchall()
    return int(count)


async def json_array(output_dir: Path) -> list[dict[str, Any]]:
    """One array, compressed."""
    import gzip

    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(table="package", output_dir=output_dir, format=DumpFormat.JSON, compress=True)
        await DumpService(client).dump(config)
    with gzip.open(output_dir / "package.json.gz", "rt") as file:
        rows: list[dict[str, Any]] = json.load(file)
    return rows


async def resume_and_reset(output_dir: Path) -> tuple[int, bool]:
    """A second run goes on where the state says; `reset` forgets it."""
    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(table="tv_channel", output_dir=output_dir, resume=True)
        await DumpService(client).dump(config)

        manager = AsyncDumpManager(client, config)
        stats = await manager.dump()  # nothing new: ends at once
        manager.reset()
        return stats.progress.dumped_rows, config.state_path.exists()


async def pause_and_resume(output_dir: Path) -> tuple[DumpStats, int]:
    """Held and let go on while it runs."""
    config = DumpConfig(table="tv_program", output_dir=output_dir, chunk_size=50)
    async with AsyncIPTVPortalClient() as client:
        service = DumpService(client)

        running = asyncio.Event()
        dump_task = asyncio.create_task(service.dump(config, progress_callback=lambda _: running.set()))
        await running.wait()

        service.pause("tv_program")
        stats = service.get_stats("tv_program")
        assert stats is not None  # None is for a table that was never dumped
        paused_at = stats.progress.dumped_rows
        print("Paused. Current progress:", stats.progress)

        service.resume("tv_program")
        return await dump_task, paused_at


async def filtered(output_dir: Path) -> DumpStats:
    """Active subscribers with a balance of at least 10."""
    where = Q(disabled=False) & Q(balance__gte=10)
    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(table="subscriber", output_dir=output_dir, where_clause=where)
        return await DumpService(client).dump(config)


async def ordered(output_dir: Path) -> DumpStats:
    """Newest first."""
    async with AsyncIPTVPortalClient() as client:
        config = DumpConfig(table="terminal", output_dir=output_dir, order_by="last_seen DESC")
        return await DumpService(client).dump(config)


async def failure(output_dir: Path) -> str:
    """What a failure says, and that the next run can go on."""
    config = DumpConfig(table="no_such_table", output_dir=output_dir)
    async with AsyncIPTVPortalClient() as client:
        service = DumpService(client)
        try:
            await service.dump(config)
        except ProducerError as error:
            print(f"Dump failed: {error}")
            stats = service.get_stats(config.table)
            print(f"Last successful offset: {stats.progress.current_offset if stats else 0}")
            return str(error)
    return ""


async def daily_analytics(output_dir: Path) -> list[DumpStats]:
    """Tables as Parquet for a BI tool."""
    configs = [
        DumpConfig(table=table, output_dir=output_dir, format=DumpFormat.PARQUET)
        for table in ("subscriber", "terminal", "media", "tv_program")
    ]
    async with AsyncIPTVPortalClient() as client:
        return await DumpService(client).dump_many(configs, max_concurrent=2)


async def incremental_sync(output_dir: Path) -> DumpStats:
    """Only what is new: run it again, and it goes on after the last id."""
    config = DumpConfig(
        table="terminal",
        output_dir=output_dir,
        strategy=DumpStrategy.ID_RANGE,
        where_clause=Q(last_seen__gte="2025-12-15"),
        chunk_size=10000,
    )
    async with AsyncIPTVPortalClient() as client:
        return await DumpService(client).dump(config)


async def database_migration(output_dir: Path) -> list[DumpStats]:
    """Tables as lines of JSON for another database, continued when interrupted."""
    done = []
    async with AsyncIPTVPortalClient() as client:
        service = DumpService(client)
        for table in ("tv_channel", "tv_program", "subscriber"):
            config = DumpConfig(table=table, output_dir=output_dir, format=DumpFormat.JSONL, resume=True)
            done.append(await service.dump(config))
    return done


async def data_science(output_dir: Path) -> Any:
    """Large Parquet chunks into pandas."""
    import pandas as pd

    config = DumpConfig(table="media", output_dir=output_dir, format=DumpFormat.PARQUET, chunk_size=50000)
    async with AsyncIPTVPortalClient() as client:
        stats = await DumpService(client).dump(config)
    df = pd.concat(pd.read_parquet(path) for path in stats.files)
    print(df.groupby("type").size())
    return df


async def main() -> None:
    """Runs every example below ``DUMP_DIR`` (default ``dumps``), each in a folder of its own."""
    base = Path(os.environ.get("DUMP_DIR", "dumps"))
    for example in (
        single_table,
        several_tables,
        progress_while_it_runs,
        id_range,
        compressed_lines,
        csv_with_pandas,
        parquet_with_duckdb,
        json_array,
        resume_and_reset,
        pause_and_resume,
        filtered,
        ordered,
        failure,
        daily_analytics,
        incremental_sync,
        database_migration,
        data_science,
    ):
        print(f"--- {example.__name__}: {(example.__doc__ or '').strip()}")
        await example(base / example.__name__)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except ProducerError as error:
        sys.exit(f"error: {error}")
