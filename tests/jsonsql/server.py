"""Owns the loopback JSONSQL server: the API's protocol over a real SQLite or PostgreSQL table, with scripted faults.

It enforces what the real API does: no answer without a session header, sessions that expire, errors as JSON-RPC
objects, and batches answered in another order than they were asked. Rows are lists without names.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from tests.jsonsql.compile import JsonSqlError, compile_select
from tests.jsonsql.postgres import Postgres

Json = Any

# SQLite has no booleans and dates of its own: what a column is declared as decides, as in the API's answers.
sqlite3.register_converter("boolean", lambda raw: raw != b"0")
for _declared in ("date", "timestamp"):
    sqlite3.register_converter(_declared, bytes.decode)
sqlite3.register_converter("any_text", json.loads)  # any value, written as JSON


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request in the place of an answer; `None` in a script lets the request through."""

    status: int = 200
    error: Json = None  # a JSON-RPC error object
    retry_after_s: float | None = None
    delay_s: float = 0.0  # before the answer
    drop: bool = False  # the connection is cut in the middle of the answer
    expire: bool = False  # every session is forgotten first
    rows: Json = None  # an answer of these rows
    body: bytes | None = None  # an answer of these bytes


@dataclass(slots=True)
class Settings:
    database: str  # a path for SQLite, or postgresql://...
    username: str = "user"
    password: str = "secret"
    port: int = 0
    latency_s: float = 0.0
    session_s: float = 3600.0
    expired_as_error: bool = False  # a JSON-RPC error in the place of HTTP 401
    gzip: bool = False
    max_rows: int | None = None  # the API's own cap on a page
    script: deque[Fault | None] = field(default_factory=deque)


class JsonSqlServer:
    """``async with JsonSqlServer(Settings(path)) as server: server.url``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.requests: list[Json] = []  # the params of every select, as they came
        self.logins = 0
        self.url = ""
        self._sessions: dict[str, float] = {}
        self._postgres: Postgres | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> JsonSqlServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def script(self, *faults: Fault | None) -> None:
        """What happens to the next requests for data, one each."""
        self.settings.script.extend(faults)

    async def start(self) -> None:
        if self.settings.database.startswith("postgresql://"):
            self._postgres = Postgres(self.settings.database)
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/api/jsonrpc/", self._authorise)
        app.router.add_post("/api/jsonsql/", self._select)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.settings.port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._postgres is not None:
            self._postgres.close()

    async def _authorise(self, request: web.Request) -> web.StreamResponse:
        call = orjson.loads(await request.read())
        params = call.get("params") or {}
        if call.get("method") != "authorize_user":
            return self._answer(request, _error(call, -32601, "method not found"))
        if (params.get("username"), params.get("password")) != (self.settings.username, self.settings.password):
            return self._answer(request, _error(call, -32000, "invalid username or password"))
        self.logins += 1
        session = secrets.token_hex(16)
        self._sessions[session] = time.monotonic() + self.settings.session_s
        return self._answer(request, {"jsonrpc": "2.0", "id": call.get("id"), "result": {"session_id": session}})

    async def _select(self, request: web.Request) -> web.StreamResponse:
        settings = self.settings
        body = orjson.loads(await request.read())
        await asyncio.sleep(settings.latency_s)
        fault = settings.script.popleft() if settings.script else None
        if fault is not None and fault.expire:
            self._sessions.clear()
        header = request.headers.get("Iptvportal-Authorization", "")
        if self._sessions.get(header.removeprefix("sessionid="), 0.0) < time.monotonic():
            refusal = _error(body if isinstance(body, dict) else {}, 401, "session expired")
            return self._answer(request, refusal, 200 if settings.expired_as_error else 401)
        if fault is not None:
            await asyncio.sleep(fault.delay_s)
        calls = body if isinstance(body, list) else [body]
        if fault is not None and (fault.status, fault.error, fault.rows, fault.body, fault.drop) != (
            200,
            None,
            None,
            None,
            False,
        ):
            return await self._faulty(request, fault, calls)
        answers = [await self._run(call) for call in calls]
        return self._answer(request, answers[::-1] if isinstance(body, list) else answers[0])

    async def _faulty(self, request: web.Request, fault: Fault, calls: list[Json]) -> web.StreamResponse:
        if fault.drop:
            response = web.StreamResponse(headers={"Content-Length": "1000000"})
            await response.prepare(request)
            await response.write(b'{"jsonrpc": "2.0", "result": [[1')
            assert request.transport is not None
            request.transport.abort()
            return response
        headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
        if fault.body is not None:
            return web.Response(body=fault.body, status=fault.status, headers=headers)
        if fault.rows is not None:
            answer = {"jsonrpc": "2.0", "id": calls[0]["id"], "result": fault.rows}
        elif fault.error is not None:
            answer = {"jsonrpc": "2.0", "id": calls[0]["id"], "error": fault.error}
        else:
            return web.Response(text="failure", status=fault.status, headers=headers)
        return self._answer(request, answer, fault.status)

    async def _run(self, call: Json) -> Json:
        if call.get("method") != "select":
            return _error(call, -32601, "method not found")
        params = call.get("params")
        self.requests.append(params)
        try:
            sql, values = compile_select(params, postgres=self._postgres is not None)
            if self._postgres is not None:
                rows: Json = await asyncio.to_thread(self._postgres.rows, sql, self.settings.max_rows)
            else:
                rows = (await asyncio.to_thread(self._sqlite_rows, sql, values))[: self.settings.max_rows]
        except (JsonSqlError, sqlite3.Error) as error:
            return _error(call, -32000, str(error))
        return {"jsonrpc": "2.0", "id": call.get("id"), "result": rows}

    def _sqlite_rows(self, sql: str, values: list[Json]) -> list[Json]:
        connection = sqlite3.connect(
            f"file:{self.settings.database}?mode=ro", uri=True, detect_types=sqlite3.PARSE_DECLTYPES
        )
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def _answer(self, request: web.Request, answer: Json, status: int = 200) -> web.Response:
        body = _dumps(answer)
        headers = {"Content-Type": "application/json"}
        if self.settings.gzip and "gzip" in request.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, status=status, headers=headers)


def _dumps(answer: Json) -> bytes:
    try:
        return orjson.dumps(answer)
    except TypeError:  # a whole number of more than 64 bits
        return json.dumps(answer).encode()


def _error(call: Json, code: int, message: str) -> Json:
    return {"jsonrpc": "2.0", "id": call.get("id"), "error": {"code": code, "message": message}}


def fill_sqlite(path: str, table: str, rows: Iterable[Json], columns: str) -> None:
    """A table of these rows; `columns` is SQL, for example ``id INTEGER PRIMARY KEY, name TEXT``."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f'CREATE TABLE "{table}" ({columns})')
        marks = ", ".join("?" for _ in columns.split(","))
        connection.executemany(f'INSERT INTO "{table}" VALUES ({marks})', rows)
    connection.close()
