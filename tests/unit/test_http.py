"""Owns the claims about the HTTP side: what each route answers, and when."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import pytest

from producer import http
from producer.commits import SplitProgress
from producer.config import Config, HttpConfig
from producer.errors import ConfigError, ProducerError, StoreUnavailableError
from producer.logs import HIDDEN
from producer.metrics import Metrics
from producer.model import Between, Checkpoint, KeyPosition, Split
from producer.service import Service
from producer.status import StreamStatus

SECRET = "hunter2secret"


@dataclass
class OneStream:
    """A service whose only stream is in whatever state a test says."""

    status: StreamStatus = field(default_factory=lambda: StreamStatus("events", "shop", "shop.events"))
    token: str | None = None
    host: str = "127.0.0.1"
    replayed: list[Between] = field(default_factory=list)
    trouble: ProducerError | None = None

    @property
    def config(self) -> Config:
        source = {"type": "sql", "url": "sqlite:///none"}
        http: dict[str, Any] = {"token": self.token, "host": self.host}
        return Config.model_validate(
            {"sources": {"s": source}, "streams": [{"source": "s", "table": "t"}], "http": http}
        )

    @property
    def streams(self) -> dict[str, StreamStatus]:
        return {self.status.name: self.status}

    async def pause(self, _name: str) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.status.state = "paused"

    async def resume(self, _name: str) -> None:
        self.status.state = "running"

    async def replay(self, _name: str, wanted: Between) -> Split:
        self.replayed.append(wanted)
        return Split("replay-1")


@asynccontextmanager
async def served(service: OneStream) -> AsyncIterator[aiohttp.ClientSession]:
    listener = http.bind(HttpConfig(host=service.host, port=0))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def redact(text: str) -> str:
        return text.replace(SECRET, HIDDEN)

    async with (
        http.serving(listener, Metrics(), cast(Service, service), redact),
        aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(10)) as session,
    ):
        yield session


async def test_who_asks_first_is_noticed_and_answered_later() -> None:
    listener = http.bind(HttpConfig(port=0))
    asked = asyncio.create_task(http.asked(listener))
    await asyncio.sleep(0.05)
    assert not asked.done()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(10):
        await asked
        async with http.serving(listener, Metrics(), cast(Service, OneStream()), str):
            assert (await reader.read()).endswith(b"ok\n")
    writer.close()


async def test_alive_says_nothing_about_streams() -> None:
    service = OneStream()
    service.status.state = "failed"
    async with served(service) as session, session.get("/livez") as answer:
        assert answer.status == 200


async def test_ready_only_when_every_stream_has_started() -> None:
    service = OneStream()
    async with served(service) as session:
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            assert await answer.json() == {"ready": False, "streams": {"events": "starting"}}
        service.status.state = "running"
        async with session.get("/readyz") as answer:
            assert answer.status == 200


async def test_ready_while_another_process_runs_the_stream_and_this_one_stands_by() -> None:
    service = OneStream()
    service.status.stands_by = True
    async with served(service) as session, session.get("/readyz") as answer:
        assert answer.status == 200


async def test_metrics_are_in_the_text_format() -> None:
    async with served(OneStream()) as session, session.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "producer_build_info{" in await answer.text()


async def test_a_shared_stream_shows_who_owns_what_in_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_ID", "a")
    service = OneStream()
    service.status.shared = True
    service.status.split_lists = {
        "0": [SplitProgress(Checkpoint(Split("2"))), SplitProgress(Checkpoint(Split("4"), done=True))]
    }
    service.status.elsewhere = [("1.1", Checkpoint(Split("1")), "b"), ("1.3", Checkpoint(Split("3"), done=True), "b")]
    async with served(service) as session, session.get("/streams/events") as answer:
        told = await answer.json()
    owners = [(split["id"], split["owner"]) for split in told["splits"]]
    assert owners == [("0.2", "a"), ("0.4", None), ("1.1", "b"), ("1.3", None)]


async def test_a_stream_shows_its_splits_and_times() -> None:
    service = OneStream()
    service.status.split_lists = {"": [SplitProgress(Checkpoint(Split("0"), KeyPosition((7,)), 5))]}
    service.status.started_at = 0.0
    async with served(service) as session, session.get("/streams/events") as answer:
        told = await answer.json()
    assert told["splits"] == [
        {
            "id": "0",
            "position": {"key": [7]},
            "lower": None,
            "upper": None,
            "replays": None,
            "rows": 5,
            "done": False,
            "owner": None,
        }
    ]
    assert told["started_at"] == "1970-01-01T00:00:00.000+00:00"
    assert told["last_commit_at"] is None


async def test_an_unknown_stream_is_404_and_names_those_there_are() -> None:
    async with served(OneStream()) as session, session.get("/streams/evnts") as answer:
        assert answer.status == 404
        assert "events" in await answer.text()


async def test_pause_and_resume_answer_with_the_new_state() -> None:
    async with served(OneStream()) as session:
        async with session.post("/streams/events/pause") as answer:
            assert (await answer.json())["state"] == "paused"
        async with session.post("/streams/events/resume") as answer:
            assert (await answer.json())["state"] == "running"


async def test_another_site_cannot_pause() -> None:
    service = OneStream()
    evil = {"Origin": "http://evil.example"}
    async with served(service) as session, session.post("/streams/events/pause", headers=evil) as answer:
        assert answer.status == 403
    assert service.status.state == "starting"


async def test_no_secret_reaches_a_page() -> None:
    service = OneStream()
    service.status.error = service.status.hint = service.status.retrying = f"<b>refused {SECRET}</b>"
    async with served(service) as session:
        for path in ("/streams", "/streams/events"):
            async with session.get(path) as answer:
                text = await answer.text()
                assert SECRET not in text
                assert HIDDEN in text
    service.trouble = StoreUnavailableError(f"no {SECRET}", hint=SECRET)
    async with served(service) as session, session.post("/streams/events/pause") as answer:
        assert answer.status == 503
        assert await answer.json() == {"error": f"no {HIDDEN}", "hint": HIDDEN}


TOKEN = "correct horse battery"


@pytest.mark.parametrize("action", ["pause", "resume", "replay"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer ü"])
async def test_what_changes_state_needs_the_token(action: str, header: str | None) -> None:
    service = OneStream(token=TOKEN)
    headers = {} if header is None else {"Authorization": header}
    async with served(service) as session:
        async with session.post(f"/streams/events/{action}", headers=headers, json={"from": 1}) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert TOKEN not in await answer.text()
        async with session.get("/streams") as answer:
            assert answer.status == 200  # reading is open
    assert (service.status.state, service.replayed) == ("starting", [])


async def test_with_the_token_state_is_changed_from_anywhere() -> None:
    service = OneStream(token=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": "203.0.113.9", "Host": "producer.example"}
    async with served(service) as session, session.post("/streams/events/pause", headers=headers) as answer:
        assert answer.status == 200
    assert service.status.state == "paused"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.9"},  # a proxy on this machine hands on what comes from elsewhere
        {"Forwarded": "for=203.0.113.9"},
        {"X-Real-IP": "203.0.113.9"},
        {"X-Forwarded-Host": "producer.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},  # its name leads here: DNS rebinding
        {"Host": "127.0.0.1.evil.example"},
    ],
)
async def test_without_a_token_only_the_machine_itself_changes_state(headers: dict[str, str]) -> None:
    service = OneStream()
    async with served(service) as session, session.post("/streams/events/pause", headers=headers) as answer:
        assert answer.status == 403
        assert "http.token" in await answer.text()
    assert service.status.state == "starting"


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/streams", "/streams/events", "/none"])
async def test_on_loopback_a_name_that_was_made_to_lead_here_reads_nothing(path: str) -> None:
    """DNS rebinding: the browser takes the page of that name for the same site, and would hand it the answer."""
    async with served(OneStream()) as session:
        for host in ("evil.example", "127.0.0.1.evil.example:9464", "192.168.1.7"):
            async with session.get(path, headers={"Host": host}) as answer:
                assert answer.status == 403
                assert "http.host" in (await answer.json())["hint"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9464", "127.0.0.1", "127.1.2.3:80", "[::1]:9464"])
async def test_on_loopback_the_names_of_the_machine_itself_are_answered(host: str) -> None:
    async with served(OneStream()) as session, session.get("/streams", headers={"Host": host}) as answer:
        assert answer.status == 200


async def test_on_loopback_another_name_is_answered_where_the_token_is_sent() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "producer.example"}
    async with served(OneStream(token=TOKEN)) as session, session.get("/streams", headers=headers) as answer:
        assert answer.status == 200


async def test_on_all_addresses_any_name_is_answered() -> None:
    async with (
        served(OneStream(host="0.0.0.0")) as session,
        session.get("/streams", headers={"Host": "producer.example"}) as answer,
    ):
        assert answer.status == 200


async def raw(session: aiohttp.ClientSession, request: bytes) -> bytes:
    """What is answered to bytes that no client of ours would send."""
    assert session._base_url is not None
    reader, writer = await asyncio.open_connection(session._base_url.host, session._base_url.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Host: localhost\r\nAuthorization: Bearer \xfc", b"401"),
        (b"Host: localhost\r\nOrigin: http://[x", b"403"),
        (b"Host: [::1", b"400"),
        (b"Host: \xfc", b"403"),
    ],
)
async def test_headers_that_are_none_are_refused_and_not_an_error_of_ours(
    lines: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    service = OneStream(token=TOKEN)
    request = b"POST /streams/events/pause HTTP/1.1\r\n" + lines + b"\r\nConnection: close\r\n\r\n"
    async with served(service) as session:
        answer = await raw(session, request)
    assert answer.split()[1] == status
    assert (service.status.state, caplog.records) == ("starting", [])


async def test_who_sends_no_host_is_no_browser_and_may_read() -> None:
    async with served(OneStream()) as session:
        answer = await raw(session, b"GET /livez HTTP/1.0\r\n\r\n")
    assert answer.split()[1] == b"200"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/streams", 200),
        ("GET", "/none", 404),
        ("GET", "/streams/none", 404),
        ("PUT", "/streams", 405),
        ("POST", "/streams/events/replay", 413),
        ("POST", "/streams/events/pause", 500),
    ],
)
async def test_every_answer_has_the_headers_that_keep_browsers_careful(method: str, path: str, status: int) -> None:
    service = OneStream()
    service.trouble = cast(ProducerError, RuntimeError("unforeseen"))
    body = b"x" * 100_000 if status == 413 else None
    async with served(service) as session, session.request(method, path, data=body) as answer:
        assert answer.status == status
        for header, value in http._SECURITY_HEADERS.items():
            assert answer.headers[header] == value


async def test_a_short_token_is_refused_and_not_told() -> None:
    with pytest.raises(ValueError, match="at least 16 characters") as caught:
        HttpConfig.model_validate({"token": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"from": 100, "to": "200"}, Between("", "100", "200")),
        ({"column": "changed", "from": "2026-01-01"}, Between("changed", "2026-01-01", None)),
    ],
)
async def test_a_replay_is_asked_for_by_its_range(body: dict[str, Any], wanted: Between) -> None:
    service = OneStream()
    async with served(service) as session, session.post("/streams/events/replay", json=body) as answer:
        assert answer.status == 202
        assert await answer.json() == {"stream": "events", "split": "replay-1"}
    assert service.replayed == [wanted]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "{}", '{"form": 1}', '{"from": true}', '{"from": [1]}', '{"column": 1, "to": 2}']
)
async def test_a_replay_that_is_not_a_range_is_refused_with_an_example(body: str) -> None:
    service = OneStream()
    async with served(service) as session, session.post("/streams/events/replay", data=body) as answer:
        assert answer.status == 400
        assert '"from": 100' in (await answer.json())["hint"]
    assert service.replayed == []


async def test_the_openapi_document_has_every_route_and_tells_streams_as_they_are() -> None:
    service = OneStream()
    service.status.split_lists[""] = [SplitProgress(Checkpoint(Split("0")))]
    async with served(service) as session:
        async with session.get("/openapi.json") as answer:
            api = await answer.json()
        async with session.get("/streams/events") as answer:
            told = await answer.json()
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in http._application(Metrics(), cast(Service, service), str, on_loopback=True).router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert routes == {
        (method, path) for path, told in api["paths"].items() for method in told if method != "parameters"
    }
    stream = api["components"]["schemas"]["Stream"]
    assert set(told) == set(stream["properties"])
    assert set(stream["required"]) <= set(told)


@pytest.mark.parametrize("path", ["/", "/api"])
async def test_pages_load_nothing_from_elsewhere_and_run_only_their_own_script(path: str) -> None:
    async with served(OneStream()) as session, session.get(path) as answer:
        text, policy = await answer.text(), answer.headers["Content-Security-Policy"]
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(|\son\w+=""", text)
    assert "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[\w+/=]+'; style-src 'sha256-[\w+/=]+'; connect-src 'self'", policy)


def test_a_port_in_use_is_a_configuration_error() -> None:
    listener = http.bind(HttpConfig(port=0))
    try:
        with pytest.raises(ConfigError, match="the port is in use"):
            http.bind(HttpConfig(port=listener.getsockname()[1]))
    finally:
        listener.close()


def test_a_port_that_nobody_asked_for_gives_way_to_a_free_one() -> None:
    first = http.bind(HttpConfig())
    second = http.bind(HttpConfig())
    try:
        assert first.getsockname()[1] != second.getsockname()[1]
    finally:
        first.close()
        second.close()


def test_an_address_that_is_not_ours_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        http.bind(HttpConfig(host="203.0.113.1"))
