"""Owns the claims about one admin client that several use: opened and closed once, and left where it has failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiokafka.errors as ke
import pytest

from producer import kafka
from producer.config import KafkaConfig
from producer.errors import SinkUnavailableError

CONFIG = KafkaConfig()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of the clients, which are numbers."""
    told: list[str] = []
    opened = iter(range(10))

    @asynccontextmanager
    async def admin(config: KafkaConfig) -> AsyncIterator[Any]:
        number = next(opened)
        await asyncio.sleep(0.001)
        told.append(f"open {number}")
        try:
            yield number
        finally:
            await asyncio.sleep(0.001)
            told.append(f"close {number}")

    monkeypatch.setattr(kafka, "admin", admin)
    return told


async def test_those_who_come_while_it_is_used_have_the_same_client(log: list[str]) -> None:
    shared = kafka.SharedAdmin()

    async def use() -> Any:
        async with shared(CONFIG) as client:
            await asyncio.sleep(0.005)
            return client

    assert await asyncio.gather(*(use() for _ in range(5))) == [0] * 5
    assert log == ["open 0", "close 0"]
    assert await use() == 1
    assert log == ["open 0", "close 0", "open 1", "close 1"]


async def test_after_an_error_the_next_one_has_a_client_of_its_own_and_the_old_one_is_closed_by_the_last(
    log: list[str],
) -> None:
    shared = kafka.SharedAdmin()
    async with shared(CONFIG) as first:
        with pytest.raises(SinkUnavailableError):
            async with shared(CONFIG) as same:
                assert same is first
                raise ke.KafkaConnectionError("gone")
        async with shared(CONFIG) as other:
            assert (first, other) == (0, 1)
        assert log == ["open 0", "open 1", "close 1"]
    assert log[-1] == "close 0"


async def test_a_broker_that_does_not_answer_is_waited_for_once_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 0

    @asynccontextmanager
    async def admin(config: KafkaConfig) -> AsyncIterator[Any]:
        nonlocal opened
        opened += 1
        await asyncio.sleep(0.02)
        if opened:
            raise SinkUnavailableError("no answer")
        yield

    async def use() -> None:
        async with shared(CONFIG):
            pass

    shared = kafka.SharedAdmin()
    monkeypatch.setattr(kafka, "admin", admin)
    found = await asyncio.gather(*(use() for _ in range(8)), return_exceptions=True)
    assert [type(error) for error in found] == [SinkUnavailableError] * 8
    assert opened == 1


async def test_who_stops_waiting_for_it_stops_no_other(log: list[str]) -> None:
    shared = kafka.SharedAdmin()

    async def use() -> Any:
        async with shared(CONFIG) as client:
            return client

    first, second = asyncio.create_task(use()), asyncio.create_task(use())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 0
    assert first.cancelled()
    assert log == ["open 0", "close 0"]


async def test_one_that_cannot_be_opened_is_nobodys(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    working, away = kafka.admin, True

    @asynccontextmanager
    async def admin(config: KafkaConfig) -> AsyncIterator[Any]:
        if away:
            raise SinkUnavailableError("no broker")
        async with working(config) as client:
            yield client

    shared = kafka.SharedAdmin()
    monkeypatch.setattr(kafka, "admin", admin)
    with pytest.raises(SinkUnavailableError):
        async with shared(CONFIG):
            pass
    away = False
    async with shared(CONFIG) as client:
        assert client == 0
