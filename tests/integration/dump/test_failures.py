"""What fails is told in one line, retried where that can help, and leaves a state to go on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from producer.dump import DumpConfig, DumpService
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
from tests.dump import expected, ids_of, open_client, read_back, read_state, stats_of
from tests.jsonsql.server import Fault, JsonSqlServer


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
    assert stats_of(service, "tv_channel").state == "failed"
    assert stats_of(service, "tv_channel").progress.current_offset == read_state(config)["current_offset"] == 10


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
    client = open_client(server, password="my-wrong-password")
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
    assert read_state(config)["dumped_rows"] == 20
    stats = await DumpService(client).dump(config)
    assert read_back(list(stats.files)) == expected("tv_channel")


async def test_ids_out_of_order_are_refused_before_a_row_could_be_lost(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path
) -> None:
    server.script(None, *[Fault(rows=[[2, "b"], [1, "a"]])] * 3)
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
        ({"order_by": "name DESC"}, "another query, order"),
        ({"compress": True}, "begun with compress=False, not True"),
    ],
)
async def test_another_query_or_format_does_not_continue_an_unfinished_dump_and_replaces_a_complete_one(
    client: AsyncIPTVPortalClient,
    server: JsonSqlServer,
    out: Path,
    change: dict[str, Any],
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = DumpConfig(table="tv_channel", output_dir=out, chunk_size=10, max_retries=0)
    server.script(None, None, None, Fault(status=500))
    with pytest.raises(SourceUnavailableError):
        await DumpService(client).dump(config)
    with pytest.raises(CheckpointConflictError, match=text):
        await DumpService(client).dump(replace(config, **change))
    await DumpService(client).dump(config)
    with caplog.at_level("INFO", logger="producer.dump"):
        stats = await DumpService(client).dump(replace(config, **change))
    wanted = [row for row in expected("tv_channel") if "where_clause" not in change or row["id"] > 3]
    assert sorted(ids_of(stats.files)) == [row["id"] for row in wanted]
    assert stats.progress.dumped_rows == len(wanted)
    assert [r.getMessage().endswith("starting over") for r in caplog.records if "complete" in r.message] == [True]


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
