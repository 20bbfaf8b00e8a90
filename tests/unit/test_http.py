"""Owns the claims about the HTTP side: what each route answers, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import aiohttp
import pytest

from producer import http
from producer.config import HttpConfig
from producer.errors import ConfigError
from producer.logs import HIDDEN
from producer.metrics import Metrics
from producer.model import Checkpoint, KeyPosition, Split
from producer.pipeline import SplitProgress
from producer.service import Service
from producer.stream import StreamStatus

SECRET = "hunter2secret"


@dataclass
class OneStream:
    """A service whose only stream is in whatever state a test says."""

    status: StreamStatus = field(default_factory=lambda: StreamStatus("events", "shop", "shop.events"))

    @property
    def streams(self) -> dict[str, StreamStatus]:
        return {self.status.name: self.status}

    def pause(self, _name: str) -> None:
        self.status.state = "paused"

    def resume(self, _name: str) -> None:
        self.status.state = "running"


@asynccontextmanager
async def served(service: OneStream) -> AsyncIterator[aiohttp.ClientSession]:
    listener = http.bind(HttpConfig(port=0))
    base = "http://{}:{}".format(*listener.getsockname())

    def redact(text: str) -> str:
        return text.replace(SECRET, HIDDEN)

    async with (
        http.serving(listener, Metrics(), cast(Service, service), redact),
        aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(10)) as session,
    ):
        yield session


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


async def test_metrics_are_in_the_text_format() -> None:
    async with served(OneStream()) as session, session.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "producer_build_info{" in await answer.text()


async def test_a_stream_shows_its_splits_and_times() -> None:
    service = OneStream()
    service.status.split_lists = [[SplitProgress(Checkpoint(Split("0"), KeyPosition((7,)), 5))]]
    service.status.started_at = 0.0
    async with served(service) as session, session.get("/streams/events") as answer:
        told = await answer.json()
    assert told["splits"] == [{"id": "0", "position": {"key": [7]}, "rows": 5, "done": False}]
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
        for path in ("/", "/streams", "/streams/events"):
            async with session.get(path) as answer:
                text = await answer.text()
                assert SECRET not in text
                assert HIDDEN in text
                assert path != "/" or "<b>" not in text


def test_a_port_in_use_is_a_configuration_error() -> None:
    listener = http.bind(HttpConfig(port=0))
    try:
        with pytest.raises(ConfigError, match="the port is in use"):
            http.bind(HttpConfig(port=listener.getsockname()[1]))
    finally:
        listener.close()


def test_an_address_that_is_not_ours_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        http.bind(HttpConfig(host="203.0.113.1"))
