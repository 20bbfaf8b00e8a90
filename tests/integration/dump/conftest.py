"""Owns the fixtures of the dump tests: a portal with the document's tables, its client, a place for the files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from producer.dump import manager
from producer.sources.iptvportal import AsyncIPTVPortalClient
from tests.dump import open_client, portal
from tests.jsonsql.server import JsonSqlServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JsonSqlServer]:
    with portal(tmp_path) as server:
        yield server


@pytest.fixture
async def client(server: JsonSqlServer) -> AsyncIterator[AsyncIPTVPortalClient]:
    async with open_client(server) as client:
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
