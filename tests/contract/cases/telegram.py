"""Owns the contract cases of the Telegram source: a channel with holes, a group, a private chat, bad lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr

from producer.config import StreamConfig
from producer.sources.telegram import TelegramConfig, TelegramSource
from tests.contract.cases import Build, SourceCase
from tests.mtproto import Chat, Fault, World
from tests.mtproto.running import serving

IDS = [*range(1, 12), *range(100, 400, 11), 70_000, 2**31 - 2]


@contextmanager
def case(chats: Sequence[Chat], faults: Sequence[Fault], request: pytest.FixtureRequest) -> Iterator[SourceCase]:
    empty = Chat(9999, username="empty")
    with serving(World([*chats, empty]), faults) as server:
        config = TelegramConfig(
            api_id=1, api_hash=SecretStr("h"), session=SecretStr(server.session()), min_delay_s=0, adaptive=False
        )
        yield SourceCase(
            open_source=partial(TelegramSource, config),
            stream=_stream(chats[-1].marked_id),
            keys=[(chat.marked_id, i) for chat in chats for i in chat.ids],
            empty=_stream("@empty"),
        )


def _stream(chat: Any) -> StreamConfig:
    return StreamConfig(name="s", source="chats", chat=chat, page_size=5, max_parallel=3)


def _chat(number: int, **fields: Any) -> Chat:
    return Chat(number, ids=list(IDS), **fields)


CASES: dict[str, Build] = {
    "channel": partial(case, [_chat(1001, kind="channel")], []),
    "group": partial(case, [_chat(1002, kind="group")], []),
    "private": partial(case, [_chat(1003, kind="user")], []),
    "bad_line": partial(case, [_chat(1004)], [Fault("drop", 4, every=9), Fault("salt", 6, every=7)]),
    "shifted": partial(case, [_chat(1005)], [Fault("shift", 1, every=1), Fault("empty", 8, every=11)]),
}
