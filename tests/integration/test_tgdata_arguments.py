"""TgData's settings and arguments: where they come from, and that an error names the one that is wrong."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from telethon.crypto import AuthKey
from telethon.sessions import SQLiteSession, StringSession

from producer.errors import ConfigError
from producer.tgdata import TgData
from tests.mtproto import Server, World, made_chat

GROUP = 12345
KEY = bytes(range(256))
INI = "[Telegram]\napi_id = 1\napi_hash = 'ha%sh'\nphone = +100\nsession_file = account\nlang_code = en\n"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(World([made_chat(GROUP, 250, username="demo")])) as server:
        yield server


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("API_ID", "API_HASH", "SESSION", "MIN_DELAY_S"):
        monkeypatch.delenv(f"TELEGRAM_{name}", raising=False)


def telethon_file(server: Server, path: Path) -> None:
    """The session file that the login of the tgdata package leaves."""
    server.session(KEY)
    session = SQLiteSession(str(path))
    session.set_dc(2, "127.0.0.1", server.port)
    session.auth_key = AuthKey(KEY)
    session.save()
    session.close()


async def count(tg: TgData) -> int:
    return len(await tg.get_messages(GROUP))


@pytest.mark.parametrize(
    "given", ["argument", "path", "default", "section_in_lower_case", "full_file_name", "username"]
)
async def test_a_config_ini_is_read_as_the_tgdata_package_reads_it(server: Server, tmp_path: Path, given: str) -> None:
    telethon_file(server, tmp_path / "account")
    text = {
        "section_in_lower_case": INI.replace("Telegram", "telegram"),
        "full_file_name": INI.replace("= account", f"= {tmp_path / 'account.session'}"),
        "username": INI.replace("session_file", "username"),
    }.get(given, INI)
    (tmp_path / "config.ini").write_text(text)
    tg = {
        "path": lambda: TgData(tmp_path / "config.ini", min_delay_s=0),
        "default": lambda: TgData(min_delay_s=0),
    }.get(given, lambda: TgData("config.ini", min_delay_s=0))()
    assert await count(tg) == 250


async def test_an_argument_comes_before_the_file_and_a_named_file_before_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telethon_file(server, tmp_path / "account")
    (tmp_path / "config.ini").write_text(INI)
    monkeypatch.setenv("TELEGRAM_SESSION", "not one")
    assert await count(TgData("config.ini", min_delay_s=0)) == 250
    (tmp_path / "config.ini").write_text(INI.replace("= account", "= nowhere"))
    monkeypatch.setenv("TELEGRAM_SESSION", server.session())
    assert await count(TgData(min_delay_s=0)) == 250
    assert await count(TgData("config.ini", session=tmp_path / "account.session", min_delay_s=0)) == 250


#: what is in the file, what the error says
BAD_FILES = [
    ("", "it has no section [Telegram]"),
    ("api_id = 1\nsecret", "line 1: it is not an .ini file"),
    ("[Telegram]\nsecret\napi_id = 1", "line 2: it is not an .ini file"),
    (INI + "api_id = 2\n", "it is not an .ini file"),
    (INI.replace("api_hash", "hash"), "api_hash is missing"),
    (INI.replace("= 1\n", "= one\n") + "session = s\n", "api_id: Input should be a valid integer"),
    (INI.replace("= account", "= nowhere"), "session nowhere.session: there is no such file"),
    (INI.replace("= account", "= text"), "session text.session: nobody is logged in"),
    (INI.replace("= account", "= other"), "session other.session: it is not a Telethon session file"),
    (INI + "proxy = socks5://u:secret@h:1\n", "proxy: a proxy is not supported"),
    (INI + "require_proxy = yes\n", "require_proxy: a proxy is not supported"),
]


@pytest.mark.parametrize(("text", "error"), BAD_FILES)
def test_a_config_ini_that_cannot_be_used_is_refused_without_showing_it(tmp_path: Path, text: str, error: str) -> None:
    SQLiteSession("text").close()
    with contextlib.closing(sqlite3.connect("other.session")) as db:
        db.execute("CREATE TABLE t (a)")
    (tmp_path / "config.ini").write_text(text)
    with pytest.raises(ConfigError) as refused:
        TgData("config.ini")
    assert error in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_config_ini_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"config_path here\.ini: cannot be read: No such file"):
        TgData("here.ini")


def test_an_unknown_setting_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"connection_pool_size: TgData has no such argument \(it has config_path, "):
        TgData(api_id=1, api_hash="h", session="s", connection_pool_size=3)


# --- the arguments of a call -----------------------------------------------------------------------------------------

DATE = dt.datetime(2024, 5, 1)
BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"group_id": None}, "group_id: None is not a number, an @name or a t.me link"),
    ({"group_id": ""}, "group_id: '' is not"),
    ({"group_id": 1.5}, "group_id: 1.5 is not"),
    ({"group_id": True}, "group_id: True is not"),
    ({"group_id": 404}, "group_id: chat 404: not among the 1 chats of this account"),
    ({"group_id": "@nobody"}, "group_id: chat @nobody: there is no such chat"),
    ({"group_id": "? ?"}, "group_id: chat ? ?: not a chat"),
    ({"after_id": -1}, "after_id: -1 is not a message's id"),
    ({"after_id": 2**31}, "after_id: 2147483648 is not"),
    ({"after_id": "5"}, "after_id: '5' is not"),
    ({"after_id": None}, "after_id: None is not"),
    ({"batch_size": 0}, "batch_size: 0 is not a whole number of at least 1"),
    ({"batch_size": 2.5}, "batch_size: 2.5 is not"),
    ({"limit": -1}, "limit: -1 is not a whole number of at least 0, or None"),
    ({"delay": -0.1}, "delay: -0.1 is not a number of seconds"),
    ({"delay": float("nan")}, "delay: nan is not"),
    ({"delay": float("inf")}, "delay: inf is not"),
    ({"start_date": "yesterday"}, "start_date: 'yesterday' is not a datetime"),
    ({"start_date": 2024}, "start_date: 2024 is not a datetime"),
    ({"end_date": object}, "end_date: <class 'object'> is not a datetime"),
    ({"start_date": DATE, "end_date": dt.date(2024, 4, 30)}, "start_date: 2024-05-01 00:00:00+00:00 is after end_date"),
    ({"progress_callback": 7}, "progress_callback: 7 is not a function"),
    ({"checkpoint_file": 7}, "checkpoint_file: 7 is not the path of a file"),
    ({"checkpoint_file": ""}, "checkpoint_file: '' is not"),
    ({"checkpoint_file": "missing/c.json"}, "missing/c.json: its folder does not exist (create the folder first)"),
    ({"checkpoint_file": "."}, "is a folder"),
    ({"checkpoint_file": "/dev/null"}, "checkpoint_file /dev/null: is not a regular file"),
    ({"checkpoint_file": "file/c.json"}, "file/c.json: Not a directory"),
    ({"checkpoint_file": "/proc/c.json"}, "checkpoint_file /proc/c.json: nothing can be written next to it"),
    ({"checkpoint_file": "n" * 300}, "File name too long"),
]


async def test_a_wrong_argument_is_named_before_anything_is_delivered(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with TgData(api_id=1, api_hash="h", session=server.session(), min_delay_s=0) as tg:
        for wrong, error in BAD_ARGUMENTS:
            arguments = {"group_id": GROUP} | wrong
            delivered = []
            with pytest.raises(ConfigError) as refused:
                delivered += [batch async for batch in tg.get_all_messages(**arguments)]
            assert error in str(refused.value)
            if "delay" not in wrong:
                with pytest.raises(ConfigError) as refused:
                    await tg.get_messages(**arguments)
                assert error in str(refused.value)
            assert "streams" not in str(refused.value)
            assert not delivered
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_numbers_and_dates_may_be_of_other_kinds_that_mean_the_same(server: Server) -> None:
    tg = TgData(api_id=1, api_hash="h", session=server.session(), min_delay_s=0)
    numbers: dict[str, Any] = {"after_id": np.int32(10), "limit": np.int64(5), "batch_size": np.uint8(3)}
    group: Any = np.int64(GROUP)
    frame = await tg.get_messages(group, **numbers)
    assert list(frame["id"]) == [11, 12, 13, 14, 15]
    starts: list[Any] = ["2024-01-01T03:00:00", "2024-01-01T03:00:00+00:00", np.datetime64("2024-01-01T03:00").item()]
    for start in starts:
        assert (await tg.get_messages(GROUP, start_date=start))["id"].iloc[0] == 180


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow: what is written fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_found_before_anything_is_read(server: Server, tmp_path: Path) -> None:
    tg = TgData(api_id=1, api_hash="h", session=server.session(), min_delay_s=0)
    with pytest.raises(ConfigError, match=r"c\.json: cannot be written: File too large"), full_disk():
        await tg.get_messages(GROUP, checkpoint_file="c.json")
    assert not server.log
    assert not list(tmp_path.iterdir())


async def test_a_disk_that_becomes_full_keeps_the_checkpoint_before(server: Server, tmp_path: Path) -> None:
    tg = TgData(api_id=1, api_hash="h", session=server.session(), min_delay_s=0)
    batches = tg.get_all_messages(GROUP, checkpoint_file="c.json", batch_size=100)
    await anext(batches)
    await anext(batches)
    with pytest.raises(Exception, match=r"c\.json: cannot be written \(File too large"), full_disk():
        await anext(batches)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
    assert json.loads((tmp_path / "c.json").read_text())["last_message_id"] == 100
    assert list((await tg.get_messages(GROUP, checkpoint_file="c.json"))["id"]) == list(range(101, 251))


def test_a_session_string_of_a_file_is_that_of_the_account(server: Server, tmp_path: Path) -> None:
    telethon_file(server, tmp_path / "account")
    tg = TgData(api_id=1, api_hash="h", session="account.session")
    session = StringSession(tg._config.session.get_secret_value())
    assert (session.auth_key.key, session.server_address, session.port) == (KEY, "127.0.0.1", server.port)
