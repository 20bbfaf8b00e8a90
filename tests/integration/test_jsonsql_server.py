"""The loopback server holds to the protocol, over SQLite and PostgreSQL alike: what the client relies on is tested
against something that refuses what the API would refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from producer.dump import DumpConfig, DumpService
from producer.errors import PermanentError
from producer.sources.iptvportal import AsyncIPTVPortalClient, Q
from tests.dump import read_back
from tests.jsonsql.running import serving
from tests.jsonsql.server import JsonSqlServer, Settings, fill_sqlite

ROWS = [(1, "a", True, None), (2, "b'", False, 1.5), (3, 'c"\\', True, 2.5), (40, "ä", False, 2.5)]
COLUMNS = "id INTEGER PRIMARY KEY, name TEXT, disabled BOOLEAN, balance DOUBLE PRECISION"


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JsonSqlServer]:
    if request.param == "sqlite":
        database = str(tmp_path / "s.db")
        fill_sqlite(database, "t", ROWS, COLUMNS)
        fill_sqlite(database, "u", [(1, 3), (2, 99)], "id INTEGER PRIMARY KEY, t_id INTEGER")
    else:
        database = request.getfixturevalue("postgres_dsn")
        asyncio.run(_fill_postgres(database))
    with serving(Settings(database)) as server:
        yield server


async def _fill_postgres(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"DROP TABLE IF EXISTS t; DROP TABLE IF EXISTS u; CREATE TABLE t ({COLUMNS})")
    await connection.execute("CREATE TABLE u (id INTEGER PRIMARY KEY, t_id INTEGER)")
    await connection.executemany("INSERT INTO t VALUES ($1, $2, $3, $4)", ROWS)
    await connection.execute("INSERT INTO u VALUES (1, 3), (2, 99)")
    await connection.close()


def rpc(server: JsonSqlServer, path: str, body: Any, session: str | None = None) -> httpx.Response:
    headers = {} if session is None else {"Iptvportal-Authorization": f"sessionid={session}"}
    return httpx.post(f"{server.url}/api/{path}/", json=body, headers=headers)


def authorise(server: JsonSqlServer) -> str:
    params = {"username": "user", "password": "secret"}
    answer = rpc(server, "jsonrpc", {"jsonrpc": "2.0", "id": 1, "method": "authorize_user", "params": params})
    return str(answer.json()["result"]["session_id"])


def select(server: JsonSqlServer, **params: Any) -> Any:
    call = {"jsonrpc": "2.0", "id": 9, "method": "select", "params": params}
    return rpc(server, "jsonsql", call, authorise(server)).json()


def test_nothing_is_answered_without_a_session(server: JsonSqlServer) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "select", "params": {"data": "*", "from": "t"}}
    assert rpc(server, "jsonsql", call).status_code == 401
    assert rpc(server, "jsonsql", call, "made-up").status_code == 401
    assert rpc(server, "jsonsql", call, authorise(server)).json()["result"][0] == [1, "a", True, None]


def test_a_session_expires(server: JsonSqlServer) -> None:
    server.settings.session_s = 0.0
    call = {"jsonrpc": "2.0", "id": 1, "method": "select", "params": {"data": "*", "from": "t"}}
    assert rpc(server, "jsonsql", call, authorise(server)).status_code == 401


def test_a_batch_is_answered_in_another_order(server: JsonSqlServer) -> None:
    calls = [
        {"jsonrpc": "2.0", "id": n, "method": "select", "params": {"data": ["id"], "from": "t", "limit": n}}
        for n in range(1, 4)
    ]
    answers = rpc(server, "jsonsql", calls, authorise(server)).json()
    assert [a["id"] for a in answers] == [3, 2, 1]


@pytest.mark.parametrize(
    ("params", "rows"),
    [
        ({"data": ["id", "*"], "limit": 1}, [[1, 1, "a", True, None]]),
        ({"data": [{"function": "count", "args": ["*"], "as": "n"}]}, [[4]]),
        ({"data": [{"function": "max", "args": ["id"]}, {"function": "min", "args": ["id"]}]}, [[40, 1]]),
        ({"data": ["id"], "order_by": ["balance", "DESC"], "where": {"lt": ["id", 3]}, "limit": 2, "offset": 0}, None),
        (
            {"data": ["id"], "order_by": [["balance", "DESC"], ["id", "DESC"]], "where": {"gte": ["id", 2]}},
            [[40], [3], [2]],
        ),
        ({"data": ["id"], "order_by": "id", "limit": 2, "offset": 1}, [[2], [3]]),
        ({"data": ["id"], "where": {"in": ["name", "a", "b'"]}, "order_by": "id"}, [[1], [2]]),
        ({"data": ["id"], "where": {"not": [{"is": ["balance", None]}]}, "order_by": "id"}, [[2], [3], [40]]),
        ({"data": ["id"], "where": {"or": [{"eq": ["id", 1]}, {"gt": ["id", 3]}]}, "order_by": "id"}, [[1], [40]]),
        ({"data": ["id"], "where": {"in": ["id", {"data": ["t_id"], "from": "u"}]}}, [[3]]),
        ({"data": [{"mul": ["id", 2]}], "where": {"eq": [{"mod": ["id", 2]}, 1]}, "order_by": "id"}, [[2], [6]]),
        ({"data": [{"coalesce": ["balance", 0]}], "where": {"eq": ["id", 1]}}, [[0]]),
    ],
)
def test_a_select_gives_rows_as_lists(server: JsonSqlServer, params: dict[str, Any], rows: Any) -> None:
    answer = select(server, **{"from": "t", **params})
    assert "error" not in answer
    assert rows is None or answer["result"] == rows


def test_tables_are_joined(server: JsonSqlServer) -> None:
    joined = [
        {"table": "u", "as": "u"},
        {"join": "t", "as": "t", "join_type": "left", "on": {"eq": [{"u": "t_id"}, {"t": "id"}]}},
    ]
    answer = select(server, data=[{"u": "id"}, {"t": "name"}], order_by={"u": "id"}, **{"from": joined})
    assert answer["result"] == [[1, 'c"\\'], [2, None]]


@pytest.mark.parametrize(
    "params",
    [
        {"data": "*", "from": "none"},
        {"data": ["nothing"], "from": "t"},
        {"data": "*"},
        {"data": "*", "from": "t", "surprise": 1},
        {"data": "*", "from": "t", "limit": "1; DROP TABLE t"},
        {"data": "*", "from": 't"; DROP TABLE t; --'},
        {"data": [{"function": "pg_sleep", "args": [9]}], "from": "t"},
    ],
)
def test_what_is_not_a_query_is_an_error_object(server: JsonSqlServer, params: dict[str, Any]) -> None:
    answer = select(server, **params)
    assert answer["error"]["message"]
    assert select(server, data=[{"function": "count", "args": ["*"]}], **{"from": "t"})["result"] == [[4]]


async def test_the_client_reads_what_was_written(server: JsonSqlServer, tmp_path: Path) -> None:
    async with AsyncIPTVPortalClient(url=server.url, username="user", password="secret") as client:
        for strategy in ("offset", "id_range"):
            config = DumpConfig(table="t", output_dir=tmp_path / strategy, strategy=strategy, chunk_size=2)
            stats = await DumpService(client).dump(config)
            rows = sorted(tuple(row.values()) for row in read_back(list(stats.files)))
            assert rows == ROWS
        config = DumpConfig(table="t", output_dir=tmp_path, where_clause=Q(name="b'") | Q(balance__gt=2, disabled=True))
        stats = await DumpService(client).dump(config)
        assert [row["field_0"] for row in read_back(list(stats.files))] == [2, 3]
        with pytest.raises(PermanentError, match="nothing"):
            await client.select(data=["nothing"], from_="t")
