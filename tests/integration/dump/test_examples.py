"""Every example of the dump service runs, over a loopback server, with the results that its text promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from examples import dump_service_example as example
from producer.dump import DumpConfig, DumpFormat, DumpStrategy
from tests.dump import SCHEMA_FILE, expected, portal, read_back
from tests.jsonsql.server import JsonSqlServer


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JsonSqlServer]:
    with portal(tmp_path) as server:
        monkeypatch.setenv("IPTVPORTAL_URL", server.url)
        monkeypatch.setenv("IPTVPORTAL_USERNAME", "user")
        monkeypatch.setenv("IPTVPORTAL_PASSWORD", "secret")
        monkeypatch.setenv("IPTVPORTAL_SCHEMA_FILE", str(SCHEMA_FILE))
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


async def test_a_single_table_becomes_lines_of_json(out: Path) -> None:
    stats = await example.single_table(out)
    assert stats.progress.dumped_rows == 60
    assert read_back([out / "tv_channel.jsonl"]) == expected("tv_channel")


async def test_the_state_file_has_the_documented_keys(out: Path) -> None:
    await example.single_table(out)
    state = json.loads((out / ".tv_channel.state.json").read_text())
    documented = {
        "table": "tv_channel",
        "dumped_rows": 60,
        "current_offset": 60,
        "chunks_completed": 1,
        "is_complete": True,
    }
    assert {key: state[key] for key in documented} == documented
    assert len(state["started_at"]) == len(state["last_updated_at"]) == len("2025-12-15T20:30:00")


async def test_several_tables_are_told_of_in_their_order(out: Path) -> None:
    told = [(s.config.table, s.progress.dumped_rows) for s in await example.several_tables(out)]
    assert told == [("tv_channel", 60), ("tv_program", 400), ("media", 300)]


async def test_progress_rises_to_all_of_it(out: Path) -> None:
    seen = await example.progress_while_it_runs(out)
    assert seen == sorted(seen)
    assert seen[-1] == 100.0


def test_the_written_out_options_are_the_defaults(out: Path) -> None:
    assert example.every_option(out) == DumpConfig(table="tv_channel", output_dir=out)
    assert DumpConfig(chunk_size=10000).output_dir == Path("dumps")
    assert DumpConfig(table="t").strategy is DumpStrategy.OFFSET
    assert DumpConfig(table="t").format is DumpFormat.JSONL


async def test_id_range_writes_every_row_once(out: Path) -> None:
    stats = await example.id_range(out)
    rows = read_back(list(stats.files))
    assert sorted(rows, key=lambda row: int(row["id"])) == expected("terminal")


async def test_compressed_lines_are_read_back(out: Path) -> None:
    assert await example.compressed_lines(out) == expected("tv_channel")


async def test_pandas_reads_the_csv(out: Path) -> None:
    assert (await example.csv_with_pandas(out)).to_dict("records") == expected("subscriber")


async def test_duckdb_counts_the_parquet_files(out: Path) -> None:
    assert await example.parquet_with_duckdb(out) == 300
    assert (out / "media-00000.parquet").exists()


async def test_the_json_array_is_one_document(out: Path) -> None:
    assert await example.json_array(out) == expected("package")


async def test_a_second_run_adds_nothing_and_a_reset_forgets(out: Path) -> None:
    assert await example.resume_and_reset(out) == (60, False)
    assert read_back([out / "tv_channel.jsonl"]) == expected("tv_channel")


async def test_a_paused_dump_goes_on_to_the_end(out: Path) -> None:
    stats, paused_at = await example.pause_and_resume(out)
    assert 0 < paused_at < 400
    assert (stats.state, stats.progress.dumped_rows) == ("complete", 400)
    assert read_back([out / "tv_program.jsonl"]) == expected("tv_program")


async def test_a_condition_chooses_the_rows(out: Path) -> None:
    stats = await example.filtered(out)
    wanted = [row for row in expected("subscriber") if not row["disabled"] and row["balance"] >= 10]
    assert read_back(list(stats.files)) == wanted


async def test_an_order_is_kept_and_made_total_by_the_id(out: Path) -> None:
    rows = read_back(list((await example.ordered(out)).files))
    wanted = sorted(expected("terminal"), key=lambda row: int(row["id"]))
    assert rows == sorted(wanted, key=lambda row: str(row["last_seen"]), reverse=True)


async def test_a_failure_carries_the_api_s_own_text(out: Path) -> None:
    assert "no such table: no_such_table" in await example.failure(out)


async def test_duckdb_reads_the_analytics_export(out: Path) -> None:
    await example.daily_analytics(out)
    for table in ("subscriber", "terminal", "media", "tv_program"):
        found = duckdb.execute("SELECT * FROM read_parquet(?) ORDER BY id", [f"{out}/{table}-*.parquet"]).fetchall()
        assert found == [tuple(row.values()) for row in expected(table)]


async def test_a_sync_reads_only_what_is_wanted_and_then_only_what_is_new(out: Path, server: JsonSqlServer) -> None:
    wanted = [row for row in expected("terminal") if row["last_seen"] >= "2025-12-15"]
    first = await example.incremental_sync(out)
    assert sorted(read_back(list(first.files)), key=lambda row: int(row["id"])) == wanted
    server.requests.clear()
    again = await example.incremental_sync(out)
    assert again.progress.dumped_rows == len(wanted)
    assert not [r for r in server.requests if "*" not in str(r["data"]) and r.get("limit", 1) > 1]


async def test_a_migration_writes_each_table_whole(out: Path) -> None:
    for stats in await example.database_migration(out):
        assert read_back(list(stats.files)) == expected(stats.config.table)


async def test_pandas_groups_the_parquet_rows(out: Path) -> None:
    assert (await example.data_science(out)).groupby("type").size().to_dict() == {"film": 150, "series": 150}


async def test_all_examples_run_one_after_the_other(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUMP_DIR", str(out))
    await example.main()
    assert "Dumped 60 rows" in capsys.readouterr().out
