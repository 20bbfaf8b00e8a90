"""Logging in against the loopback server: by phone, code and QR code, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from telethon import types
from telethon.crypto import rsa
from telethon.sessions import StringSession

from producer.errors import AuthenticationError, ProducerError, RateLimitedError
from producer.sources.telegram import login
from producer.sources.telegram.account import connect, disconnect
from tests.mtproto import Fault, Server, World, made_chat
from tests.mtproto.handshake import server_public_key
from tests.mtproto.reading import open_source, read_all, stream_config


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    rsa.add_key(server_public_key(), old=False)
    async with Server(World([made_chat(1001, 20, username="demo")])) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Any]:
    session = StringSession()
    session.set_dc(2, "127.0.0.1", server.port)
    client = login.new_client(1, "secret", session)
    await connect(client)
    yield client
    await disconnect(client)


def answers(*texts: str) -> login.Ask:
    """Answers a question, one text after the other."""
    left = list(texts)

    async def ask() -> str:
        return left.pop(0)

    return ask


async def nothing() -> str:
    raise AssertionError("not asked for")


async def test_a_code_gives_a_session_that_reads_chats(client: Any, server: Server) -> None:
    await login.by_phone(client, "+15550001", answers("12345"), nothing)
    async with open_source(server, session=login.session_of(client)) as source:
        assert (await read_all(source, stream_config())).ids == list(range(1, 21))


async def test_a_mistyped_code_may_be_given_again(client: Any) -> None:
    await login.by_phone(client, "+15550001", answers("54321", "12345"), nothing)


async def test_three_wrong_codes_are_enough(client: Any) -> None:
    with pytest.raises(AuthenticationError, match="code is wrong"):
        await login.by_phone(client, "+15550001", answers("1", "2", "3"), nothing)


@pytest.mark.parametrize(
    ("code", "text", "line"),
    [
        (400, "PHONE_NUMBER_INVALID", "not a phone number"),
        (400, "API_ID_INVALID", "api_id"),
        (400, "PHONE_NUMBER_BANNED", "banned"),
        (420, "FLOOD_WAIT_86400", "wait 86400 s"),
    ],
)
async def test_what_is_wrong_is_told_in_one_line(client: Any, server: Server, code: int, text: str, line: str) -> None:
    server.script.faults = [Fault("error", 1, value=f"{code}:{text}", request="SendCodeRequest")]
    with pytest.raises(ProducerError, match=line) as caught:
        await login.by_phone(client, "+15550001", nothing, nothing)
    assert isinstance(caught.value, RateLimitedError if code == 420 else AuthenticationError)
    assert "\n" not in str(caught.value)


async def test_a_qr_code_that_nobody_scans_ends_in_time(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "QR_LIFE_S", 0.1)
    shown: list[str] = []
    with pytest.raises(AuthenticationError, match="no code was scanned"):
        await login.by_qr(client, shown.append, nothing, wait_s=0.3)
    assert len(shown) >= 2
    assert all(url.startswith("tg://login?token=") for url in shown)


async def test_a_password_is_asked_for_where_the_account_has_one(client: Any, server: Server) -> None:
    server.script.faults = [
        Fault("error", 1, value="401:SESSION_PASSWORD_NEEDED", request="SignInRequest"),
        Fault("error", 1, every=1, value="400:PASSWORD_HASH_INVALID", request="GetPasswordRequest"),
    ]
    with pytest.raises(AuthenticationError, match="password is wrong"):
        await login.by_phone(client, "+15550001", answers("12345"), answers("a", "b", "c"))


async def test_a_scanned_qr_code_logs_in(client: Any, server: Server) -> None:
    async def scan() -> None:
        server.world.scanned = True
        await server.push(types.UpdateLoginToken())

    scans: list[asyncio.Task[None]] = []
    await login.by_qr(client, lambda url: scans.append(asyncio.create_task(scan())), nothing, wait_s=5)
    async with open_source(server, session=login.session_of(client)) as source:
        assert (await read_all(source, stream_config())).ids == list(range(1, 21))
