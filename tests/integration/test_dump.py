"""Dumps over a loopback server: continuing, pausing, failing, and what each failure says."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from producer.dump import AsyncDumpManager, DumpConfig, DumpProgress, DumpService, manager
from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    CheckpointCorruptError,
    ConfigError,
    PermanentError,
    ProducerError,
    SchemaIncompatibleError,
    SourceUnavailableError,
)
from producer.sources.iptvportal import AsyncIPTVPortalClient, Q
from tests.dump import SCHEMA_FILE, expected, portal, read_back
from tests.jsonsql.server import Fault, JsonSqlServer

FORMATS = ("jsonl", "csv", "parquet", "json", "avro")
ALL_FORMATS = [(form, compress) for form in FORMATS for compress in (False, True)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JsonSqlServer]:
    with portal(tmp_path) as server:
        yield server


@pytest.fixture
async def client(server: JsonSqlServer) -> AsyncIterator[AsyncIPTVPortalClient]:
    async with _client(server) as client:
        yield client


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the dump would have waited between its attempts; nothing really waits."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(manager, "sleep", sleep)
    return waits


def _client(server: JsonSqlServer, **more: Any) -> AsyncIPTVPortalClient:
    options: dict[str, Any] = {"username": "user", "password": "secret", "schema_file": str(SCHEMA_FILE)} | more
    return AsyncIPTVPortalClient(url=server.url, **options)


def _state(config: DumpConfig) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(config.state_path.read_text())
    return state


def _ids(config: DumpConfig, stats_files: tuple[Path, ...]) -> list[int]:
    return [int(row["id"]) for row in read_back(list(stats_files))]


# --- continuing ------------------------------------------------------------------------------------------------------


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
    rows_before = _state(config)["dumped_rows"]
    assert _state(config)["is_complete"] is False
    stats = await DumpService(client).dump(config)
    assert 0 < rows_before < stats.progress.dumped_rows == 400
    assert sorted(_ids(config, stats.files)) == [row["id"] for row in expected("tv_program")]


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
    assert sorted(_ids(config, stats.files)) == list(range(1, 71))
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
    assert _ids(config, stats.files) == [5]


async def test_a_state_with_only_the_documented_keys_is_continued(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out)
    await DumpService(client).dump(config)
    lines = (out / "tv_channel.jsonl").read_bytes().splitlines(keepends=True)
    (out / "tv_channel.jsonl").write_bytes(b"".join(lines[:25]) + lines[25][:7])  # with a torn line
    documented = {k: v for k, v in _state(config).items() if k in ("table", "started_at", "last_updated_at")}
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
    assert _ids(config, stats.files) == list(range(51, 61))


async def test_resume_offset_keeps_the_whole_rows_of_a_file_that_lost_its_state(
    client: AsyncIPTVPortalClient, out: Path
) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out, format="csv", resume_offset=25)
    out.mkdir()
    rows = "".join(f'{i},"channel {i}"\n' for i in range(1, 26))
    (out / "tv_channel.csv").write_text('"id","name"\n' + rows + '26,"chan\nnel')
    stats = await DumpService(client).dump(config)
    assert _ids(config, stats.files) == list(range(1, 61))


async def test_resume_offset_is_an_id_with_ranges(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="tv_program", output_dir=out, strategy="id_range", resume_offset=500)
    stats = await DumpService(client).dump(config)
    assert sorted(_ids(config, stats.files)) == list(range(502, 801, 2))
    assert stats.progress.current_offset == 800


@pytest.mark.parametrize("form", ["json", "avro"])
async def test_a_format_that_cannot_be_continued_without_state_says_so(
    client: AsyncIPTVPortalClient, out: Path, form: Any
) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out, format=form)
    await DumpService(client).dump(config)
    config.state_path.unlink()
    with pytest.raises(ConfigError, match="without its state"):
        await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out, format=form, resume_offset=3))


async def test_without_resume_the_dump_starts_over(client: AsyncIPTVPortalClient, out: Path) -> None:
    for _ in range(2):
        config = DumpConfig(table="tv_channel", output_dir=out, resume=False, format="parquet", chunk_size=10)
        stats = await DumpService(client).dump(config)
    config = DumpConfig(table="tv_channel", output_dir=out, resume=False, format="parquet", chunk_size=30)
    stats = await DumpService(client).dump(config)
    assert [p.name for p in sorted(out.glob("*.parquet"))] == ["tv_channel-00000.parquet", "tv_channel-00001.parquet"]
    assert _ids(config, stats.files) == list(range(1, 61))


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
    assert _ids(config, stats.files) == list(range(1, 61))


async def test_without_a_schema_both_strategies_read_every_row(server: JsonSqlServer, out: Path) -> None:
    async with _client(server, schema_file=None) as client:
        for strategy in ("offset", "id_range"):
            config = DumpConfig(table="tv_program", output_dir=out / strategy, strategy=strategy)
            stats = await DumpService(client).dump(config)
            rows = sorted(read_back(list(stats.files)), key=lambda row: int(row["field_0"]))
            assert rows == [{"field_0": r["id"], "field_1": r["title"]} for r in expected("tv_program")]


async def test_chosen_columns_are_asked_for_and_an_id_beside_them_is_not_written(
    server: JsonSqlServer, out: Path
) -> None:
    async with _client(server, schema_file=None) as client:
        config = DumpConfig(table="tv_program", output_dir=out, columns=["title"], strategy="id_range")
        stats = await DumpService(client).dump(config)
    assert sorted(r["title"] for r in read_back(list(stats.files))) == sorted(
        r["title"] for r in expected("tv_program")
    )
    assert {tuple(row) for row in read_back(list(stats.files))} == {("title",)}


# --- pausing, stopping, several at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_nothing_is_written_while_paused(client: AsyncIPTVPortalClient, out: Path, strategy: Any) -> None:
    config = DumpConfig(table="terminal", output_dir=out, chunk_size=10, strategy=strategy)
    service = DumpService(client)
    rows_at_pause: list[int] = []

    def pause_once(progress: DumpProgress) -> None:
        if not rows_at_pause:
            rows_at_pause.append(progress.dumped_rows)
            service.pause("terminal")

    task = asyncio.create_task(service.dump(config, progress_callback=pause_once))
    while not rows_at_pause:
        await asyncio.sleep(0.001)
    stats = service.get_stats("terminal")
    assert stats.state == "paused"
    held = await _settled(out / "terminal.jsonl")
    # What was on its way when the pause came: of each range a chunk that was written, and one that was being written.
    assert len(held.splitlines()) <= rows_at_pause[0] + 10 * (6 if strategy == "id_range" else 2)
    assert _state(config)["dumped_rows"] == stats.progress.dumped_rows == len(held.splitlines())
    elapsed = stats.progress.elapsed_seconds()
    await asyncio.sleep(0.2)
    assert (out / "terminal.jsonl").read_bytes() == held
    assert stats.progress.elapsed_seconds() == elapsed
    service.resume("terminal")
    assert (await task).progress.dumped_rows == 1000
    assert sorted(_ids(config, stats.files)) == [row["id"] for row in expected("terminal")]


async def _settled(path: Path) -> bytes:
    """The file once it has been the same 30 times in a row."""
    same, before = 0, b""
    while same < 30:
        await asyncio.sleep(0.005)
        now = path.read_bytes()
        same, before = (same + 1 if now == before else 0), now
    return before


async def test_a_cancelled_dump_keeps_its_state_and_goes_on(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="terminal", output_dir=out, chunk_size=10)
    service, begun = DumpService(client), asyncio.Event()
    task = asyncio.create_task(service.dump(config, progress_callback=lambda _: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stopped = service.get_stats("terminal")
    assert (stopped.state, _state(config)["dumped_rows"]) == ("stopped", stopped.progress.dumped_rows)
    stats = await service.dump(config)
    assert _ids(config, stats.files) == [row["id"] for row in expected("terminal")]


async def test_several_tables_keep_their_own_states_and_one_failure_stops_no_other(
    client: AsyncIPTVPortalClient, out: Path
) -> None:
    configs = [DumpConfig(table=table, output_dir=out) for table in ("tv_channel", "no_such", "media", "nor_this")]
    service = DumpService(client)
    with pytest.raises(PermanentError, match="no_such") as caught:
        await service.dump_many(configs, max_concurrent=3)
    assert "nor_this" in caught.value.__notes__[0]
    assert [service.get_stats(c.table).state for c in configs] == ["complete", "failed", "complete", "failed"]
    assert [_state(c)["table"] for c in configs if c.state_path.exists()] == ["tv_channel", "media"]


async def test_two_dumps_of_one_table_to_one_place_are_refused(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="terminal", output_dir=out, chunk_size=10)
    first = DumpService(client)
    begun = asyncio.Event()
    task = asyncio.create_task(first.dump(config, progress_callback=lambda _: begun.set()))
    await begun.wait()
    with pytest.raises(CheckpointConflictError, match="being dumped"):
        await DumpService(client).dump(config)
    with pytest.raises(CheckpointConflictError, match="being dumped"):
        AsyncDumpManager(client, config).reset()
    assert (await task).state == "complete"


async def test_a_table_that_is_not_dumped_cannot_be_paused(client: AsyncIPTVPortalClient) -> None:
    with pytest.raises(ConfigError, match="'nothing' is not being dumped"):
        DumpService(client).pause("nothing")


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_failed_chunk_is_asked_for_again_after_the_documented_delays(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, waits: list[float]
) -> None:
    server.script(None, None, Fault(status=500), Fault(drop=True), Fault(body=b'{"jsonrpc'), None)
    stats = await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out, chunk_size=10))
    assert waits == [1.5, 2.25, 3.375]
    assert (stats.retries, stats.progress.dumped_rows) == (3, 60)
    assert read_back(list(stats.files)) == expected("tv_channel")


async def test_after_the_last_retry_the_error_is_raised_and_the_state_kept(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, waits: list[float]
) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out, chunk_size=10)
    service = DumpService(client)
    server.script(None, None, *[Fault(status=502)] * 4)
    with pytest.raises(SourceUnavailableError, match="HTTP 502"):
        await service.dump(config)
    assert len(waits) == 3
    assert service.get_stats("tv_channel").state == "failed"
    assert service.get_stats("tv_channel").progress.current_offset == _state(config)["current_offset"] == 10


async def test_too_many_requests_are_answered_by_waiting_as_long_as_asked(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, waits: list[float]
) -> None:
    server.script(None, Fault(status=429, retry_after_s=17))
    await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out))
    assert waits == [17]


async def test_a_slow_answer_is_a_request_timeout(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path
) -> None:
    server.script(None, Fault(delay_s=30))
    config = DumpConfig(table="tv_channel", output_dir=out, batch_timeout=0.2, max_retries=0)
    with pytest.raises(SourceUnavailableError, match="Request timeout"):
        await DumpService(client).dump(config)
    server.settings.script.clear()


@pytest.mark.parametrize("as_error", [False, True])
async def test_an_expired_session_is_renewed_once_in_the_middle_of_a_dump(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, as_error: bool
) -> None:
    server.settings.expired_as_error = as_error
    server.script(None, None, Fault(expire=True))
    stats = await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out, chunk_size=10))
    assert (stats.progress.dumped_rows, stats.retries, server.logins) == (60, 0, 2)


async def test_wrong_credentials_are_refused_without_the_password(server: JsonSqlServer, out: Path) -> None:
    client = _client(server, password="my-wrong-password")
    with pytest.raises(AuthenticationError, match="refused user 'user': invalid username or password") as caught:
        await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out))
    await client.close()
    assert "my-wrong-password" not in str(caught.value)


async def test_missing_settings_are_named_by_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOMAIN", "URL", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"IPTVPORTAL_{name}", raising=False)
    with pytest.raises(ConfigError, match="set IPTVPORTAL_DOMAIN, IPTVPORTAL_PASSWORD"):
        AsyncIPTVPortalClient(username="u")


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        (
            Fault(error={"code": 42, "message": "permission denied for table"}),
            PermanentError,
            "permission denied for table",
        ),
        (Fault(rows=[[1, "a"], [2]]), SchemaIncompatibleError, "row 1 of the page has 1 values where 2"),
        (Fault(rows=[[1, "a"], "b"]), SchemaIncompatibleError, "row 1 of the page is a str"),
        (Fault(rows={"a": 1}), PermanentError, "dict"),
        (Fault(rows=[["one", "a"]]), PermanentError, "tv_channel.id: row 0 of the page has a str"),
        (Fault(status=403), AuthenticationError, "HTTP 403"),
        (Fault(status=404), PermanentError, "HTTP 404"),
    ],
)
async def test_what_the_api_answers_wrong_is_told_and_the_state_kept(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, fault: Fault, kind: type[ProducerError], text: str
) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out, chunk_size=10)
    server.script(None, None, None, fault)
    with pytest.raises(kind, match=text):
        await DumpService(client).dump(config)
    assert _state(config)["dumped_rows"] == 20
    stats = await DumpService(client).dump(config)
    assert read_back(list(stats.files)) == expected("tv_channel")


async def test_ids_out_of_order_are_refused_before_a_row_could_be_lost(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path
) -> None:
    server.script(None, None, *[Fault(rows=[[2, "b"], [1, "a"]])] * 3)
    with pytest.raises(SchemaIncompatibleError, match="not in the order of id"):
        await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out, strategy="id_range"))


async def test_an_unknown_column_in_a_condition_is_named_with_the_nearest(
    client: AsyncIPTVPortalClient, out: Path
) -> None:
    config = DumpConfig(table="subscriber", output_dir=out, where_clause=Q(balnce__gte=10))
    with pytest.raises(ConfigError, match=r"no column 'balnce'.*did you mean 'balance'"):
        await DumpService(client).dump(config)


async def test_ranges_are_refused_where_they_cannot_be_read_in_the_order_asked_for(
    client: AsyncIPTVPortalClient, out: Path
) -> None:
    config = DumpConfig(table="terminal", output_dir=out, strategy="id_range", order_by="last_seen DESC")
    with pytest.raises(ConfigError, match="reads in the order of id, not by last_seen DESC"):
        await DumpService(client).dump(config)


async def test_the_state_of_another_table_is_refused(client: AsyncIPTVPortalClient, out: Path) -> None:
    await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out))
    (out / ".tv_channel.state.json").rename(out / ".media.state.json")
    with pytest.raises(CheckpointConflictError, match="is the state of table tv_channel, not of media"):
        await DumpService(client).dump(DumpConfig(table="media", output_dir=out))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"table": 1}', '{"table": "tv_channel", "splits": []}'])
async def test_a_state_that_cannot_be_read_is_refused(client: AsyncIPTVPortalClient, out: Path, text: str) -> None:
    out.mkdir()
    (out / ".tv_channel.state.json").write_text(text)
    with pytest.raises(CheckpointCorruptError, match="resume=False"):
        await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"where_clause": Q(id__gt=3)}, "another query"),
        ({"strategy": "id_range"}, "another query, order or strategy"),
        ({"format": "csv"}, "begun with format=jsonl, not csv"),
        ({"compress": True}, "begun with compress=False, not True"),
    ],
)
async def test_another_query_or_format_does_not_continue_a_dump(
    client: AsyncIPTVPortalClient, out: Path, change: dict[str, Any], text: str
) -> None:
    await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out))
    with pytest.raises(CheckpointConflictError, match=text):
        await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=out, **change))


async def test_a_file_that_is_not_as_its_state_says_is_not_continued(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out)
    await DumpService(client).dump(config)
    (out / "tv_channel.jsonl").write_text("short")
    with pytest.raises(CheckpointConflictError, match="has 5 bytes and its state says"):
        await DumpService(client).dump(config)
    (out / "tv_channel.jsonl").unlink()
    with pytest.raises(CheckpointConflictError, match="is gone"):
        await DumpService(client).dump(config)


async def test_an_output_directory_that_cannot_be_written_is_named(
    client: AsyncIPTVPortalClient, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/dumps cannot be written: Not a directory"):
        await DumpService(client).dump(DumpConfig(table="tv_channel", output_dir=tmp_path / "file" / "dumps"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("chunk_size", 0), ("format", "xml"), ("strategy", "random"), ("max_parallel", 0), ("batch_timeout", -1)],
)
def test_a_wrong_option_is_refused_by_its_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        DumpConfig(table="t", **{option: value})


async def test_a_dump_without_a_table_says_so(client: AsyncIPTVPortalClient) -> None:
    with pytest.raises(ConfigError, match="table is not given"):
        await DumpService(client).dump(DumpConfig(chunk_size=1000))


async def test_a_batch_is_matched_by_its_ids(client: AsyncIPTVPortalClient) -> None:
    calls = [("select", {"data": ["id"], "from": "tv_channel", "limit": 1, "offset": n}) for n in range(5)]
    assert await client.batch(calls) == [[[n]] for n in range(1, 6)]
