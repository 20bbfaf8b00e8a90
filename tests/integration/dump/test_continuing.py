"""Dumps are continued: after failures, with new rows, from offsets, in every format; and what each state says."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from producer.dump import DumpConfig, DumpService, manager
from producer.dump import state as state_file
from producer.errors import (
    ConfigError,
    SourceUnavailableError,
)
from producer.sources.iptvportal import AsyncIPTVPortalClient, Q
from tests.dump import expected, ids_of, open_client, read_back, read_state
from tests.jsonsql.server import Fault, JsonSqlServer

FORMATS = ("jsonl", "csv", "parquet", "json", "avro")
ALL_FORMATS = [(form, compress) for form in FORMATS for compress in (False, True)]


@pytest.mark.parametrize(("form", "compress"), ALL_FORMATS)
@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_a_dump_that_failed_goes_on_in_the_same_files(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, form: Any, compress: bool, strategy: Any
) -> None:
    options: dict[str, Any] = {"format": form, "compress": compress, "strategy": strategy, "chunk_size": 20}
    config = DumpConfig(table="tv_program", output_dir=out, max_retries=0, **options)
    server.script(*[None] * 10, Fault(status=500), Fault(status=500))
    with pytest.raises(SourceUnavailableError, match="HTTP 500"):
        await DumpService(client).dump(config)
    server.settings.script.clear()
    rows_before = read_state(config)["dumped_rows"]
    assert read_state(config)["is_complete"] is False
    stats = await DumpService(client).dump(config)
    assert 0 < rows_before < stats.progress.dumped_rows == 400
    assert sorted(ids_of(stats.files)) == [row["id"] for row in expected("tv_program")]


@pytest.mark.parametrize(("form", "compress"), ALL_FORMATS)
@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_rows_added_after_a_complete_dump_are_appended_by_the_next(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, form: Any, compress: bool, strategy: Any
) -> None:
    config = DumpConfig(
        table="tv_channel", output_dir=out, format=form, compress=compress, strategy=strategy, chunk_size=25
    )
    await DumpService(client).dump(config)
    with sqlite3.connect(server.settings.database) as database:
        database.executemany("INSERT INTO tv_channel VALUES (?, ?)", [(i, f"channel {i}") for i in range(61, 71)])
    database.close()
    stats = await DumpService(client).dump(config)
    assert sorted(ids_of(stats.files)) == list(range(1, 71))
    assert (stats.progress.dumped_rows, stats.state) == (70, "complete")


@pytest.mark.parametrize(("form", "compress"), ALL_FORMATS)
async def test_a_table_without_rows_gives_a_readable_file_and_later_its_rows(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, form: Any, compress: bool
) -> None:
    with sqlite3.connect(server.settings.database) as database:
        database.execute("DELETE FROM package")
    config = DumpConfig(table="package", output_dir=out, format=form, compress=compress, strategy="id_range")
    await DumpService(client).dump(config)
    (path,) = (p for p in out.iterdir() if not p.name.startswith("."))
    assert read_back([path]) == []
    with database:
        database.execute("INSERT INTO package VALUES (5, 'five')")
    database.close()
    stats = await DumpService(client).dump(config)
    assert stats.files == (path,)
    assert ids_of(stats.files) == [5]


async def test_a_state_with_only_the_documented_keys_is_continued(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out)
    await DumpService(client).dump(config)
    lines = (out / "tv_channel.jsonl").read_bytes().splitlines(keepends=True)
    (out / "tv_channel.jsonl").write_bytes(b"".join(lines[:25]) + lines[25][:7])  # with a torn line
    documented = {k: v for k, v in read_state(config).items() if k in ("table", "started_at", "last_updated_at")}
    documented |= {"dumped_rows": 25, "current_offset": 25, "chunks_completed": 5, "is_complete": False}
    config.state_path.write_text(json.dumps(documented))
    stats = await DumpService(client).dump(config)
    assert (out / "tv_channel.jsonl").read_bytes() == b"".join(lines)
    assert stats.progress.dumped_rows == 60


async def test_resume_offset_begins_there_and_is_applied_once(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path
) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out, resume_offset=50, chunk_size=4, max_retries=0)
    server.script(None, None, Fault(status=503))
    with pytest.raises(SourceUnavailableError):
        await DumpService(client).dump(config)
    stats = await DumpService(client).dump(config)
    assert ids_of(stats.files) == list(range(51, 61))


async def test_resume_offset_keeps_the_whole_rows_of_a_file_that_lost_its_state(
    client: AsyncIPTVPortalClient, out: Path
) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out, format="csv", resume_offset=25)
    out.mkdir()
    rows = "".join(f'{i},"channel {i}"\n' for i in range(1, 26))
    (out / "tv_channel.csv").write_text('"id","name"\n' + rows + '26,"chan\nnel')
    stats = await DumpService(client).dump(config)
    assert ids_of(stats.files) == list(range(1, 61))


async def test_resume_offset_is_an_id_with_ranges(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="tv_program", output_dir=out, strategy="id_range", resume_offset=500)
    stats = await DumpService(client).dump(config)
    assert sorted(ids_of(stats.files)) == list(range(502, 801, 2))
    assert stats.progress.current_offset == 800


@pytest.mark.parametrize(("form", "compress"), ALL_FORMATS)
@pytest.mark.parametrize("offset", [1, 20, 33, 60, 70])
@pytest.mark.parametrize("left", ["complete", "failed", "without state"])
async def test_resume_offset_writes_each_row_once(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, form: Any, compress: bool, offset: int, left: str
) -> None:
    """Rows of the files before the offset stay, later ones are written anew; a gap is what was asked for."""
    options: dict[str, Any] = {"format": form, "compress": compress, "chunk_size": 10, "max_retries": 0}
    config = DumpConfig(table="tv_channel", output_dir=out, **options)
    rows = 60
    if left == "failed":
        rows = 40
        server.script(*[None] * 5, Fault(status=500))
        with pytest.raises(SourceUnavailableError):
            await DumpService(client).dump(config)
        assert read_state(config)["dumped_rows"] == rows
    else:
        await DumpService(client).dump(config)
    if left == "without state":
        config.state_path.unlink()
    if form == "json" and left == "failed":  # an array without its end
        rows = 40
    stats = await DumpService(client).dump(replace(config, resume_offset=offset))
    found = ids_of(stats.files)
    assert found == [*range(1, min(offset, rows) + 1), *range(offset + 1, 61)]
    assert (stats.progress.dumped_rows, stats.progress.current_offset) == (len(found), max(60, offset))
    assert stats.progress.percent_complete() == 100.0
    again = await DumpService(client).dump(replace(config, resume_offset=offset))
    assert ids_of(again.files) == found


async def test_resume_offset_past_the_end_writes_nothing(client: AsyncIPTVPortalClient, out: Path) -> None:
    stats = await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out, resume_offset=50_000))
    assert (stats.progress.dumped_rows, ids_of(stats.files)) == (0, [])


async def test_resume_offset_with_ranges_does_not_replace_files_unasked(
    client: AsyncIPTVPortalClient, out: Path
) -> None:
    config = DumpConfig(table="tv_program", output_dir=out, strategy="id_range")
    await DumpService(client).dump(config)
    with pytest.raises(ConfigError, match="resume=False to replace it"):
        await DumpService(client).dump(replace(config, resume_offset=500))
    assert len(ids_of((out / "tv_program.jsonl",))) == 400
    stats = await DumpService(client).dump(replace(config, resume_offset=500, resume=False))
    assert sorted(ids_of(stats.files)) == list(range(502, 801, 2))
    assert stats.progress.dumped_rows == 150


@pytest.mark.parametrize(("strategy", "offset", "ids"), [("offset", 10, (41, 61)), ("id_range", 40, (41, 61))])
async def test_resume_offset_keeps_no_rows_of_another_dump_that_is_complete(
    client: AsyncIPTVPortalClient, out: Path, strategy: Any, offset: int, ids: tuple[int, int]
) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out, strategy=strategy, chunk_size=5)
    await DumpService(client).dump(config)
    other = replace(config, where_clause=Q(id__gte=31), resume_offset=offset)
    stats = await DumpService(client).dump(other)
    assert sorted(ids_of(stats.files)) == list(range(*ids))
    again = await DumpService(client).dump(other)
    assert sorted(ids_of(again.files)) == list(range(*ids))


def test_resume_offset_may_be_none() -> None:
    assert DumpConfig(table="t", resume_offset=None) == DumpConfig(table="t")


async def test_without_resume_the_dump_starts_over(client: AsyncIPTVPortalClient, out: Path) -> None:
    for _ in range(2):
        config = DumpConfig(table="tv_channel", output_dir=out, resume=False, format="parquet", chunk_size=10)
        stats = await DumpService(client).dump(config)
    config = DumpConfig(table="tv_channel", output_dir=out, resume=False, format="parquet", chunk_size=30)
    stats = await DumpService(client).dump(config)
    assert [p.name for p in sorted(out.glob("*.parquet"))] == ["tv_channel-00000.parquet", "tv_channel-00001.parquet"]
    assert ids_of(stats.files) == list(range(1, 61))


async def test_a_large_csv_is_one_file_a_chunk(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "SHEET_ROWS", 50)
    config = DumpConfig(table="tv_channel", output_dir=out, format="csv", chunk_size=20, max_retries=0)
    server.script(None, None, Fault(status=500))
    with pytest.raises(SourceUnavailableError):
        await DumpService(client).dump(config)
    stats = await DumpService(client).dump(config)
    assert [p.name for p in stats.files] == [f"tv_channel-0000{n}.csv" for n in range(3)]
    assert ids_of(stats.files) == list(range(1, 61))


async def test_without_a_schema_both_strategies_read_every_row(server: JsonSqlServer, out: Path) -> None:
    async with open_client(server, schema_file=None) as client:
        for strategy in ("offset", "id_range"):
            config = DumpConfig(table="tv_program", output_dir=out / strategy, strategy=strategy)
            stats = await DumpService(client).dump(config)
            rows = sorted(read_back(list(stats.files)), key=lambda row: int(row["field_0"]))
            assert rows == [{"field_0": r["id"], "field_1": r["title"]} for r in expected("tv_program")]


async def test_chosen_columns_are_asked_for_and_an_id_beside_them_is_not_written(
    server: JsonSqlServer, out: Path
) -> None:
    async with open_client(server, schema_file=None) as client:
        config = DumpConfig(table="tv_program", output_dir=out, columns=["title"], strategy="id_range")
        stats = await DumpService(client).dump(config)
    assert sorted(r["title"] for r in read_back(list(stats.files))) == sorted(
        r["title"] for r in expected("tv_program")
    )
    assert {tuple(row) for row in read_back(list(stats.files))} == {("title",)}


@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_every_saved_state_says_exactly_what_stands_in_the_file(
    client: AsyncIPTVPortalClient, out: Path, strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def save(config: DumpConfig, saved: state_file.SavedDump) -> None:
        assert saved.exact is not None
        vouched = (out / "terminal.jsonl").read_bytes()[: saved.exact.mark.length]
        assert vouched.endswith(b"\n") or not vouched
        ids = {json.loads(line)["id"] for line in vouched.splitlines()}
        for checkpoint in saved.exact.checkpoints if strategy == "id_range" else ():
            lower, upper = (_number(p) for p in (checkpoint.split.lower, checkpoint.position or checkpoint.split.lower))
            assert {i for i in range(3, 3001, 3) if lower < i <= upper} <= ids
        told.append((len(ids), saved.dumped_rows))

    monkeypatch.setattr(state_file, "save", save)
    await DumpService(client).dump(DumpConfig(table="terminal", output_dir=out, chunk_size=7, strategy=strategy))
    assert [in_file for in_file, _ in told] == [said for _, said in told]
    assert told[0][1] == 0
    assert told[-1][1] == 1000


def _number(position: Any) -> int:
    return 0 if position is None else int(position.values[0])
