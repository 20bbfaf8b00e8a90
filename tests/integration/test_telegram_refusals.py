"""The Telegram source against the loopback server: what is refused and how it is told, takeout, downloads, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from telethon import functions
from telethon.crypto import rsa
from telethon.sessions import StringSession

from producer.errors import AuthenticationError, ConfigError, PermanentError, ProducerError, TransientError
from producer.sources.telegram.account import connect, disconnect, make_client
from producer.sources.telegram.media import Store
from tests.mtproto import Chat, Fault, Server, World, made_chat
from tests.mtproto.handshake import server_public_key
from tests.mtproto.reading import CHAT, open_source, read_all, stream_config

MARKED = -1000000000000 - CHAT


def demo(count: int = 500, **fields: Any) -> Chat:
    return made_chat(CHAT, count, **({"username": "demo", "title": "Demo"} | fields))


@pytest.mark.parametrize(
    ("stream", "line"),
    [
        ({"mode": "timestamp", "order_by": ["edit_date"]}, "a chat has no timestamp mode"),
        ({"key": ["id"]}, "a message's key is chat_id, id"),
        ({"order_by": ["date"]}, "messages come in the order of their ids"),
        ({"where": "id > 5"}, "a chat takes a mapping"),
        ({"where": {"begin": "2024-01-01"}}, "where.begin"),
        ({"mode": "tail", "where": {"end_date": "2024-01-01T00:00:00"}}, "a tail has no end"),
        ({"chat": None, "table": "public.t"}, "names a chat, not a table"),
        ({"chat": "@nobody"}, "chat @nobody: there is no such chat"),
        ({"chat": -1000000009999}, "not among the 1 chats"),
        ({"chat": "two words"}, "not a chat"),
        ({"chat": "https://t.me/+gone"}, "there is no such chat"),
        ({"chat": f"{MARKED}:1"}, "there is no such chat"),
    ],
)
async def test_a_stream_that_cannot_be_is_refused_in_one_line(stream: dict[str, Any], line: str) -> None:
    async with Server(World([demo(20)])) as server, open_source(server) as source:
        with pytest.raises(ConfigError, match=line) as caught:
            await source.describe(stream_config(**stream))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("refusal", "line"),
    [
        ("CHANNEL_PRIVATE", "private and this account is not in it"),
        ("CHAT_ADMIN_REQUIRED", "no permission"),
        ("CHAT_FORBIDDEN", "no permission"),
        ("USER_BANNED_IN_CHANNEL", "no permission"),
    ],
)
async def test_a_chat_that_may_not_be_read_stops_the_stream_in_one_line(refusal: str, line: str) -> None:
    async with Server(World([demo(20, refuses=refusal)])) as server, open_source(server) as source:
        with pytest.raises(PermanentError, match=line) as caught:
            await source.describe(stream_config())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "text", "line"),
    [
        (401, "SESSION_REVOKED", "revoked"),
        (401, "AUTH_KEY_UNREGISTERED", "not logged in"),
        (401, "USER_DEACTIVATED_BAN", "banned"),
        (406, "AUTH_KEY_DUPLICATED", "two addresses"),
        (400, "API_ID_INVALID", "api_id"),
    ],
)
async def test_a_session_that_is_over_is_told_in_one_line_without_the_session(code: int, text: str, line: str) -> None:
    fault = Fault("error", 1, every=1, value=f"{code}:{text}", request="GetUsersRequest")
    async with Server(World([demo(5)]), [fault]) as server:
        session = server.session()
        with pytest.raises(AuthenticationError, match=line) as caught:
            async with open_source(server, session=session):
                pass
    assert session not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_wrong_api_id_is_told_when_connecting() -> None:
    fault = Fault("error", 1, every=1, value="400:CONNECTION_API_ID_INVALID", request="GetConfigRequest")
    async with Server(World([demo(5)]), [fault]) as server:
        with pytest.raises(AuthenticationError, match="api_id"):
            async with open_source(server):
                pass


async def test_a_key_that_the_server_has_forgotten_is_told() -> None:
    async with Server(World([demo(5)])) as server:
        session = server.session()
        server.forget_keys()
        with pytest.raises(AuthenticationError, match="not logged in, or was revoked"):
            async with open_source(server, session=session):
                pass


@pytest.mark.parametrize("session", ["", "1garbage", "xx-not-one-xx"])
async def test_a_text_that_is_no_session_is_refused_without_repeating_it(session: str) -> None:
    async with Server(World([])) as server:
        with pytest.raises(ProducerError, match="session") as caught:
            async with open_source(server, session=session):
                pass
    assert not session or session not in str(caught.value)


# --- takeout and downloads ------------------------------------------------------------------------------------------


async def test_a_takeout_session_reads_the_history_and_is_finished() -> None:
    async with Server(World([demo(300)])) as server:
        async with open_source(server, takeout=True) as source:
            assert (await read_all(source, stream_config())).ids == list(range(1, 301))
        assert server.takeout_requests >= 3
        assert server.script.seen["FinishTakeoutSessionRequest"] == 1


async def test_a_takeout_that_has_to_wait_says_what_to_do() -> None:
    fault = Fault("error", 1, value="420:TAKEOUT_INIT_DELAY_3600", request="InitTakeoutSessionRequest")
    async with Server(World([demo(5)]), [fault]) as server:
        with pytest.raises(PermanentError, match=r"3600 s only \(confirm the export"):
            async with open_source(server, takeout=True):
                pass


async def test_media_are_written_to_a_folder_once_and_named_in_the_row(tmp_path: Path) -> None:
    async with Server(World([demo(30)])) as server:
        for _ in range(2):
            async with open_source(server, media_path=str(tmp_path)) as source:
                reading = await read_all(source, stream_config())
        files = {row["id"]: row["media_file"] for row in reading.rows if row["media_file"]}
        assert sorted(files) == [6, 9]
        assert all(Path(path).stat().st_size for path in files.values())
        assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["6.jpg", "9.mp4"]


async def test_media_that_telegram_refuses_are_left_out_and_their_message_is_not(tmp_path: Path) -> None:
    fault = Fault("error", 1, every=1, value="400:FILE_ID_INVALID", request="GetFileRequest")
    path = str(tmp_path)
    async with Server(World([demo(30)]), [fault]) as server, open_source(server, media_path=path) as source:
        reading = await read_all(source, stream_config())
    assert reading.ids == list(range(1, 31))
    assert {row["media_file"] for row in reading.rows} == {None}


@pytest.mark.parametrize("way", ["flood wait", "full disk"])
async def test_a_download_that_fails_for_a_while_repeats_no_message(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [Fault("flood", 1, value=1, request="GetFileRequest")] if way == "flood wait" else []
    write, refused = Store._write, iter([way == "full disk"] * 2)

    def full(store: Store, path: str, data: bytes) -> None:
        if next(refused, False):
            raise TransientError(f"{path}: cannot be written (OSError)")
        write(store, path, data)

    monkeypatch.setattr(Store, "_write", full)
    async with Server(World([demo(30)]), faults) as server, open_source(server, media_path=str(tmp_path)) as source:
        reading = await read_all(source, stream_config())
    assert reading.ids == list(range(1, 31))
    assert sorted(row["id"] for row in reading.rows if row["media_file"]) == [6, 9]
    assert (len(reading.errors) > 0) == (way == "full disk")


async def test_the_server_also_makes_a_key_by_the_full_handshake() -> None:
    rsa.add_key(server_public_key(), old=False)
    async with Server(World([demo(5)])) as server:
        session = StringSession()
        session.set_dc(2, "127.0.0.1", server.port)
        client = make_client(session, 1, "secret", receive_updates=False)
        await connect(client)
        config = await client(functions.help.GetConfigRequest())
        await disconnect(client)
    assert config.this_dc == 2
    assert session.auth_key is not None
