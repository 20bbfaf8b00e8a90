"""The API's client in trouble: cancelled requests, sessions that end, errors that pass, and numbers of many digits."""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import math
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from producer.dump import DumpConfig, DumpProgress, DumpService
from producer.errors import PermanentError, RequestTimeoutError, SourceUnavailableError
from producer.iptvportal.query import QueryBuilder
from producer.sources.iptvportal import AsyncIPTVPortalClient, Q
from producer.sources.iptvportal.answers import loads
from tests.dump import expected, ids_of, open_client, portal, read_back, stats_of
from tests.jsonsql.server import Fault, JsonSqlServer


async def test_cancelled_requests_leave_their_connections_to_others(tmp_path: Path) -> None:
    with portal(tmp_path, latency_s=0.02) as server:
        async with open_client(server, timeout_s=5, max_connections=4) as client:
            for number in range(60):
                tasks = [asyncio.create_task(client.select(data=["id"], from_="package")) for _ in range(5)]
                await asyncio.sleep((0, 0.001, 0.005, 0.021)[number % 4])
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert len(await client.select(data=["id"], from_="package")) == 7


@pytest.mark.parametrize("as_error", [False, True], ids=["401", "error object"])
@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_a_session_that_ends_every_third_call_ends_no_dump(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, strategy: Any, as_error: bool, waits: list[float]
) -> None:
    server.settings.expired_as_error = as_error
    server.script(*[None, None, Fault(expire=True)] * 200)
    config = DumpConfig(table="terminal", output_dir=out, chunk_size=20, strategy=strategy)
    stats = await DumpService(client).dump(config)
    assert sorted(ids_of(stats.files)) == [row["id"] for row in expected("terminal")]
    assert server.logins > 10


async def test_new_sessions_that_are_refused_one_after_another_are_an_error_that_may_pass(
    client: AsyncIPTVPortalClient, server: JsonSqlServer
) -> None:
    server.script(*[Fault(expire=True)] * 30)
    with pytest.raises(SourceUnavailableError, match="another program use the same account"):
        await client.select(data=["id"], from_="package")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-32000, "deadlock detected"),
        (-32000, "ERROR: could not serialize access due to concurrent update"),
        (-32000, "canceling statement due to statement timeout"),
        (-32000, "canceling statement due to conflict with recovery"),
        (-32000, "FATAL: sorry, too many clients already"),
        (-32000, "remaining connection slots are reserved for non-replication superuser connections"),
        (-32000, "the database system is starting up"),
        (-32000, "terminating connection due to administrator command"),
        (-32000, "server closed the connection unexpectedly"),
        (-32000, "SQLSTATE[40P01]: 7"),
        (503, "Service unavailable"),
        (429, "slow down"),
    ],
)
async def test_an_error_that_may_pass_is_retried(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, code: int, message: str, waits: list[float]
) -> None:
    server.script(None, Fault(error={"code": code, "message": message}))
    stats = await DumpService(client).dump(DumpConfig(table="package", output_dir=out))
    assert (stats.retries, ids_of(stats.files)) == (1, list(range(1, 8)))


@pytest.mark.parametrize("message", ["no such table: nothing", "syntax error at or near x", "permission denied"])
async def test_an_error_that_cannot_pass_is_not_retried(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, message: str, waits: list[float]
) -> None:
    server.script(Fault(error={"code": -32000, "message": message}))
    with pytest.raises(PermanentError, match=message):
        await DumpService(client).dump(DumpConfig(table="package", output_dir=out))
    assert waits == []


async def test_the_last_timeout_is_a_timeout_error(server: JsonSqlServer, out: Path, waits: list[float]) -> None:
    async with open_client(server, timeout_s=0.2) as client:
        server.script(*[Fault(delay_s=0.5)] * 10)
        config = DumpConfig(table="package", output_dir=out, batch_timeout=0.1, max_retries=1)
        with pytest.raises(TimeoutError, match="Request timeout") as caught:
            await DumpService(client).dump(config)
        assert isinstance(caught.value, RequestTimeoutError)
        server.settings.script.clear()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5", 1.5),
        ("9007199254740993", 2**53 + 1),
        ("18446744073709551616", 2**64),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("0.12345678901234567890", decimal.Decimal("0.12345678901234567890")),
        ("0.1000000000000000000000", 0.1),
        ("Infinity", math.inf),
        ('"12345678901234567890"', "12345678901234567890"),
    ],
)
def test_a_number_keeps_all_its_digits(text: str, value: Any) -> None:
    found = loads(b"[" + text.encode() + b"]")[0]
    assert (type(found), found) == (type(value), value)


async def test_nan_is_a_number_and_not_broken_json(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, waits: list[float]
) -> None:
    body = b'{"jsonrpc": "2.0", "id": %d, "result": [[1, "film", NaN], [2, "film", 1.5]]}'
    server.script(None, Fault(body=body % 3))
    stats = await DumpService(client).dump(DumpConfig(table="media", output_dir=out, format="csv", chunk_size=2))
    assert [row["size"] for row in read_back(list(stats.files))][:2] == ["nan", "1.5"]
    assert stats.retries == 0


@pytest.mark.parametrize("body", [b"[" * 100_000, b"not json", b'{"result": [1'])
async def test_what_is_not_json_says_so(client: AsyncIPTVPortalClient, server: JsonSqlServer, body: bytes) -> None:
    server.script(Fault(body=body))
    with pytest.raises(SourceUnavailableError, match="not JSON"):
        await client.select(data=["id"], from_="package")


async def test_requests_are_built_and_executed_as_in_the_original_client(client: AsyncIPTVPortalClient) -> None:
    first = client.query.select(data=["id", "name"], from_="tv_channel", where=Q(name__startswith="channel 1"), limit=2)
    assert await client.execute(first) == [[1, "channel 1"], [10, "channel 10"]]
    second = client.query.select(["id"], "tv_channel", {"gt": ["id", 58]}, order_by="id DESC")
    assert await client.execute_many([first, second]) == [[[1, "channel 1"], [10, "channel 10"]], [[60], [59]]]
    assert await client.execute_many([]) == []
    assert QueryBuilder().select(["id"], "t", Q(a=1), offset=5)["params"] == {
        "data": ["id"],
        "from": "t",
        "where": {"eq": ["a", 1]},
        "offset": 5,
    }


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        (Q(name__contains="l 5"), ["channel 5", *(f"channel 5{i}" for i in range(10))]),
        (Q(name__endswith="nel 7"), ["channel 7"]),
        (Q(name__contains="%"), []),
        (Q(name__contains="_"), []),
        (Q(id__lte=2) & {"neq": ["id", 1]}, ["channel 2"]),
        ({"eq": ["id", 3]} | Q(id=4), ["channel 3", "channel 4"]),
    ],
)
async def test_pieces_of_text_and_objects_are_conditions(
    client: AsyncIPTVPortalClient, condition: Q, names: list[str]
) -> None:
    rows = await client.execute(client.query.select(["name"], "tv_channel", condition, order_by="id"))
    assert [name for (name,) in rows] == names


@pytest.mark.parametrize(
    ("strategy", "asked"),
    [
        (
            "offset",
            [
                {"data": [{"function": "count", "args": ["*"], "as": "count"}], "from": "tv_program"},
                {"order_by": ["id"], "limit": 250, "offset": 0},
                {"order_by": ["id"], "limit": 150, "offset": 250},
            ],
        ),
        (
            "id_range",
            [
                {
                    "data": [
                        {"function": "min", "args": ["id"], "as": "min"},
                        {"function": "max", "args": ["id"], "as": "max"},
                    ]
                },
                {"where": {"and": [{"gt": ["id", 1]}, {"lte": ["id", 267]}]}, "limit": 250},
                {"where": {"and": [{"gt": ["id", 267]}, {"lte": ["id", 533]}]}, "limit": 250},
                {"where": {"and": [{"gt": ["id", 533]}, {"lte": ["id", 800]}]}, "limit": 250},
            ],
        ),
    ],
)
async def test_nothing_is_asked_for_that_is_not_needed(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, strategy: Any, asked: list[dict[str, Any]]
) -> None:
    """OFFSET counts once; ID_RANGE counts nothing, and asks for the lowest and the highest id only."""
    config = DumpConfig(table="tv_program", output_dir=out, strategy=strategy, chunk_size=250, max_parallel=3)
    await DumpService(client).dump(config)
    pages = [request for request in server.requests if request.get("limit") != 0]
    ends = [r for r in pages if strategy == "id_range" and "gt" in str(r) and len(str(r.get("where"))) > 0]
    assert pages[0] | asked[0] == pages[0]
    for wanted in asked[1:]:
        assert [r for r in pages if r | wanted == r], wanted
    assert len(pages) <= len(asked) + len(ends)
    assert ("count" in str(server.requests)) == (strategy == "offset")


async def test_a_first_page_that_types_were_taken_from_is_not_fetched_again(server: JsonSqlServer, out: Path) -> None:
    async with open_client(server, schema_file=None) as client:
        for strategy in ("offset", "id_range"):
            server.requests.clear()
            config = DumpConfig(table="tv_program", output_dir=out / strategy, strategy=strategy, chunk_size=500)
            stats = await DumpService(client).dump(config)
            assert stats.progress.dumped_rows == 400
            assert len([r for r in server.requests if r.get("limit", 0) > 1]) == 1


async def test_progress_is_finite_and_ends_at_nothing_left(client: AsyncIPTVPortalClient, out: Path) -> None:
    for strategy in ("offset", "id_range"):
        seen: list[tuple[float, float]] = []
        config = DumpConfig(table="terminal", output_dir=out / strategy, strategy=strategy, chunk_size=50)
        for _ in range(2):  # the second time there is nothing to do
            stats = await DumpService(client).dump(config, partial(_note, seen))
            assert (stats.progress.percent_complete(), stats.progress.eta_seconds()) == (100.0, 0.0)
        assert all(percent > 0 and math.isfinite(eta) for percent, eta in seen)
        assert [percent for percent, _ in seen] == sorted(percent for percent, _ in seen)


def _note(seen: list[tuple[float, float]], progress: DumpProgress) -> None:
    seen.append((progress.percent_complete(), progress.eta_seconds()))


async def test_a_coroutine_is_awaited_and_what_it_raises_fails_the_dump(
    client: AsyncIPTVPortalClient, out: Path
) -> None:
    seen: list[int] = []
    service = DumpService(client)

    async def report(progress: Any) -> None:
        await asyncio.sleep(0)
        seen.append(progress.dumped_rows)
        if len(seen) == 3:
            raise RuntimeError("enough")

    config = DumpConfig(table="tv_channel", output_dir=out, chunk_size=10)
    with pytest.raises(RuntimeError, match="enough"):
        await service.dump(config, report)
    stats = stats_of(service, "tv_channel")
    assert (stats.state, stats.state.value, stats.error) == ("failed", "failed", "enough")
    stats = await service.dump(config)
    assert ids_of(stats.files) == list(range(1, 61))


async def test_many_dumps_report_their_table_and_leave_no_lock(client: AsyncIPTVPortalClient, out: Path) -> None:
    told: set[tuple[str, int]] = set()
    configs = [DumpConfig("package", out), DumpConfig("tv_channel", out, 100)]
    service = DumpService(client)
    await service.dump_many(configs, 2, lambda table, progress: told.add((table, progress.dumped_rows)))
    assert told == {("package", 7), ("tv_channel", 60)}
    assert service.get_stats("nothing") is None
    assert sorted(path.name for path in out.iterdir()) == [
        *(".package.state.json", ".tv_channel.state.json", "package.jsonl", "tv_channel.jsonl")
    ]


@pytest.mark.parametrize("indent", [0, 2, 4])
async def test_an_indented_array_is_the_same_array(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, indent: int
) -> None:
    config = DumpConfig(table="terminal", output_dir=out, format="json", indent=indent, chunk_size=100, max_retries=0)
    server.script(*[None] * 5, Fault(status=500))
    with contextlib.suppress(SourceUnavailableError):
        await DumpService(client).dump(config)
    stats = await DumpService(client).dump(config)
    assert read_back(list(stats.files)) == expected("terminal")
    text = (out / "terminal.json").read_bytes()
    assert text.splitlines()[1] == b" " * indent + b"{"
    assert orjson.loads(text)[0] == expected("terminal")[0]
