"""The dump service's document from top to bottom: every step in its order, all in one ``dumps`` folder."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from producer.iptvportal import AsyncIPTVPortalClient, Q
from producer.iptvportal.dump import (
    AsyncDumpManager,
    DumpConfig,
    DumpFormat,
    DumpProgress,
    DumpService,
    DumpStats,
    DumpStrategy,
)
from tests.dump import SCHEMA_FILE, expected, ids_of, portal, read_back, stats_of
from tests.jsonsql.server import JsonSqlServer

DUMPS = Path("dumps")


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JsonSqlServer]:
    with portal(tmp_path, latency_s=0.002) as server:
        monkeypatch.setenv("IPTVPORTAL_URL", server.url)
        monkeypatch.setenv("IPTVPORTAL_USERNAME", "user")
        monkeypatch.setenv("IPTVPORTAL_PASSWORD", "secret")
        monkeypatch.setenv("IPTVPORTAL_SCHEMA_FILE", str(SCHEMA_FILE))
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
async def client() -> AsyncIterator[AsyncIPTVPortalClient]:
    async with AsyncIPTVPortalClient() as client:
        yield client


async def test_the_whole_document_runs_in_one_folder(client: AsyncIPTVPortalClient) -> None:
    service = DumpService(client)
    for step in (
        *(quick_start, several_tables, progress, every_option, by_offset, by_id_range),
        *(compressed_lines, csv_for_a_sheet, parquet_for_analytics, one_array),
        *(automatic_resume, reset, start_from_a_row, pause_and_resume, progress_api),
        *(filtered, ordered, four_tables, chunk_sizes, retries, failure),
        *(daily_analytics, incremental_sync, migration, data_science, troubleshooting),
    ):
        await step(client, service)
    assert not [path.name for path in DUMPS.iterdir() if path.suffix in (".lock", ".tmp", ".new")]


async def quick_start(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    config = DumpConfig(table="tv_channel", output_dir=DUMPS, format=DumpFormat.JSONL, chunk_size=5000)
    stats = await DumpService(client).dump(config)
    assert stats.progress.dumped_rows == 60
    assert read_back([DUMPS / "tv_channel.jsonl"]) == expected("tv_channel")


async def several_tables(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    configs = [DumpConfig(table=table, output_dir=DUMPS) for table in ("tv_channel", "tv_program", "media")]
    all_stats = await service.dump_many(configs, max_concurrent=2)
    assert [(s.config.table, s.progress.dumped_rows) for s in all_stats] == [
        *(("tv_channel", 60), ("tv_program", 400), ("media", 300))
    ]


async def progress(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    lines: list[str] = []

    def callback(progress: DumpProgress) -> None:
        lines.append(f"{progress.percent_complete():.1f}% complete | ETA: {progress.eta_seconds():.0f}s")

    await service.dump(DumpConfig(table="media", output_dir=DUMPS), progress_callback=callback)
    assert set(lines) == {"100.0% complete | ETA: 0s"}


async def every_option(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    config = DumpConfig(
        table="tv_channel",
        output_dir=Path("./dumps"),
        chunk_size=5000,
        strategy=DumpStrategy.OFFSET,
        format=DumpFormat.JSONL,
        compress=False,
        resume=True,
        resume_offset=0,
        order_by="id ASC",
        where_clause=None,
        batch_timeout=30.0,
        max_retries=3,
        retry_backoff=1.5,
        max_parallel=3,
    )
    values = (5000, "offset", "jsonl", False, True, 0, "id ASC", None, 30.0, 3, 1.5, 3)
    assert config == DumpConfig("tv_channel", Path("dumps"), *values)  # the same by their order
    assert (await service.dump(config)).progress.dumped_rows == 60


async def by_offset(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    stats = await service.dump(DumpConfig(table="tv_channel", strategy=DumpStrategy.OFFSET, chunk_size=5000))
    assert ids_of(stats.files) == list(range(1, 61))


async def by_id_range(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    stats = await service.dump(DumpConfig(table="terminal", strategy=DumpStrategy.ID_RANGE, chunk_size=5000))
    assert sorted(ids_of(stats.files)) == [row["id"] for row in expected("terminal")]


async def compressed_lines(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    await service.dump(DumpConfig(table="tv_channel", format=DumpFormat.JSONL, compress=True))
    with gzip.open(DUMPS / "tv_channel.jsonl.gz", "rt") as file:
        assert [json.loads(line) for line in file] == expected("tv_channel")
    with open("dumps/tv_channel.jsonl") as file:  # that of before is still there
        assert [json.loads(line) for line in file] == expected("tv_channel")


async def csv_for_a_sheet(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    await service.dump(DumpConfig(table="subscriber", format=DumpFormat.CSV))
    frame = pd.read_csv("dumps/subscriber.csv")
    assert frame.describe().loc["count", "balance"] == 100


async def parquet_for_analytics(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    await service.dump(DumpConfig(table="media", format=DumpFormat.PARQUET, chunk_size=10000))
    assert len(pd.read_parquet("dumps/media-00000.parquet")) == 300
    counted = duckdb.query("SELECT COUNT(*) FROM read_parquet('dumps/media-*.parquet')")
    assert counted is not None
    assert counted.fetchall() == [(300,)]


async def one_array(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    await service.dump(DumpConfig(table="package", format=DumpFormat.JSON, compress=True))
    with gzip.open(DUMPS / "package.json.gz", "rt") as file:
        assert json.load(file) == expected("package")


async def automatic_resume(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    stats = await service.dump(DumpConfig(table="tv_channel", output_dir=DUMPS, resume=True))
    assert ids_of(stats.files) == list(range(1, 61))
    state = json.loads((DUMPS / ".tv_channel.state.json").read_text())
    assert {name: state[name] for name in ("table", "dumped_rows", "current_offset", "is_complete")} == {
        "table": "tv_channel",
        "dumped_rows": 60,
        "current_offset": 60,
        "is_complete": True,
    }


async def reset(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    manager = AsyncDumpManager(client, DumpConfig(table="tv_channel", output_dir=DUMPS))
    manager.reset()
    assert not (DUMPS / ".tv_channel.state.json").exists()


async def start_from_a_row(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    stats = await service.dump(DumpConfig(table="tv_channel", resume_offset=50000))
    assert (stats.progress.dumped_rows, stats.progress.current_offset) == (60, 50000)
    assert ids_of(stats.files) == list(range(1, 61))
    AsyncDumpManager(client, DumpConfig(table="tv_channel")).reset()
    stats = await service.dump(DumpConfig(table="tv_channel", resume_offset=50))
    assert ids_of(stats.files) == list(range(1, 61))


async def pause_and_resume(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    config = DumpConfig(table="tv_channel", chunk_size=5, resume=False)
    running = asyncio.Event()
    dump_task = asyncio.create_task(service.dump(config, lambda _: running.set()))
    await running.wait()
    service.pause("tv_channel")
    assert 0 < stats_of(service, "tv_channel").progress.dumped_rows < 60
    await asyncio.sleep(0.05)
    service.resume("tv_channel")
    assert ids_of((await dump_task).files) == list(range(1, 61))


async def progress_api(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    manager = AsyncDumpManager(client, DumpConfig(table="tv_channel", resume=False, chunk_size=12))
    await manager.dump()
    progress = manager.progress
    assert (progress.dumped_rows, progress.total_rows, progress.chunks_completed) == (60, 60, 5)
    assert (progress.percent_complete(), progress.eta_seconds()) == (100.0, 0.0)
    assert progress.rows_per_second() > 0
    assert progress.elapsed_seconds() > 0
    assert progress.started_at is not None
    assert progress.completed_at is not None
    lines: list[str] = []

    def callback(progress: DumpProgress) -> None:
        pct, throughput, eta = progress.percent_complete(), progress.rows_per_second(), progress.eta_seconds()
        lines.append(f"\r{pct:5.1f}% | {throughput:6.0f} rows/s | ETA {eta:5.0f}s")

    await service.dump(DumpConfig(table="tv_channel", resume=False, chunk_size=12), progress_callback=callback)
    assert lines[0].startswith("\r 20.0% | ")
    assert "inf" not in "".join(lines)


async def filtered(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    where = Q(disabled=False) & Q(balance__gte=10)
    stats = await service.dump(DumpConfig(table="subscriber", where_clause=where))
    wanted = [row for row in expected("subscriber") if not row["disabled"] and row["balance"] >= 10]
    assert read_back(list(stats.files)) == wanted


async def ordered(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    stats = await service.dump(DumpConfig(table="terminal", order_by="last_seen DESC"))
    seen = [row["last_seen"] for row in read_back(list(stats.files))]
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 1000


async def four_tables(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    configs = [DumpConfig(table=t, output_dir=DUMPS) for t in ("tv_channel", "tv_program", "media", "subscriber")]
    stats_list: list[DumpStats] = await service.dump_many(configs, max_concurrent=2)
    assert [s.progress.dumped_rows for s in stats_list] == [60, 400, 300, 100]
    for stats in stats_list:
        assert read_back(list(stats.files)) == expected(stats.config.table)


async def chunk_sizes(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    assert (DumpConfig(chunk_size=10000).chunk_size, DumpConfig(chunk_size=1000).chunk_size) == (10000, 1000)


async def retries(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    config = DumpConfig(table="tv_channel", max_retries=3, retry_backoff=1.5, batch_timeout=30.0)
    assert [config.retry_backoff**n for n in (1, 2, 3)] == [1.5, 2.25, 3.375]
    assert (await service.dump(config)).progress.dumped_rows == 60


async def failure(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    config = DumpConfig(table="no_such_table", output_dir=DUMPS)
    try:
        await service.dump(config)
    except Exception as error:  # as the document catches it
        assert "no such table: no_such_table" in str(error)
        assert stats_of(service, config.table).progress.current_offset == 0
    else:
        raise AssertionError("a table that is not there was dumped")


async def daily_analytics(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    tables = ("subscriber", "terminal", "media", "tv_program")
    await service.dump_many([DumpConfig(table=t, format=DumpFormat.PARQUET) for t in tables], max_concurrent=2)
    for table in tables:
        found = duckdb.execute("SELECT * FROM read_parquet(?) ORDER BY id", [f"dumps/{table}-*.parquet"]).fetchall()
        assert found == [tuple(row.values()) for row in expected(table)]


async def incremental_sync(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    config = DumpConfig(
        table="terminal",
        strategy=DumpStrategy.ID_RANGE,
        where_clause=Q(last_seen__gte="2025-12-15"),
        chunk_size=10000,
    )
    stats = await service.dump(config)
    wanted = [row["id"] for row in expected("terminal") if row["last_seen"] >= "2025-12-15"]
    assert sorted(ids_of(stats.files)) == wanted


async def migration(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    for table in ("tv_channel", "tv_program", "subscriber"):
        stats = await service.dump(DumpConfig(table=table, format=DumpFormat.JSONL, resume=True))
        assert read_back(list(stats.files)) == expected(table)


async def data_science(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    stats = await service.dump(DumpConfig(table="media", format=DumpFormat.PARQUET, chunk_size=50000))
    frame = pd.concat(pd.read_parquet(path) for path in stats.files)  # pandas itself knows no pattern of names
    assert frame.groupby("type").size().to_dict() == {"film": 150, "series": 150}


async def troubleshooting(client: AsyncIPTVPortalClient, service: DumpService) -> None:
    slow = DumpConfig(table="terminal", strategy=DumpStrategy.ID_RANGE, chunk_size=10000, max_retries=1)
    assert (await service.dump(slow)).progress.dumped_rows == 1000
    patient = DumpConfig(table="terminal", strategy=DumpStrategy.ID_RANGE, chunk_size=2000, batch_timeout=60.0)
    assert (await service.dump(patient)).progress.dumped_rows == 1000
    lost = DumpConfig(table="tv_channel", resume_offset=25)
    stats = await service.dump(lost)
    assert ids_of(stats.files) == list(range(1, 61))
