"""Owns the contract cases of the Telegram source: a channel with holes, a group, a private chat, bad lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr

from producer.config import StreamConfig
from producer.model import Traversal
from producer.sources.telegram import TelegramConfig, TelegramSource
from tests.contract.cases import SourceCase
from tests.mtproto import Chat, Fault, World
from tests.mtproto.running import serving

IDS = [*range(1, 12), *range(100, 400, 11), 70_000, 2**31 - 2]


@contextmanager
def case(
    chats: Sequence[Chat],
    faults: Sequence[Fault],
    request: pytest.FixtureRequest,
    *,
    traversal: Traversal = "ID_RANGE",
) -> Iterator[SourceCase]:
    empty = Chat(9999, username="empty")
    with serving(World([*chats, empty]), faults) as server:
        config = TelegramConfig(
            api_id=1, api_hash=SecretStr("h"), session=SecretStr(server.session()), min_delay_s=0, adaptive=False
        )
        yield SourceCase(
            open_source=partial(TelegramSource, config),
            stream=_stream(chats[-1].marked_id, traversal),
            keys=[(chat.marked_id, i) for chat in chats for i in chat.ids],
            empty=_stream("@empty", traversal),
        )


def _stream(chat: Any, traversal: Traversal) -> StreamConfig:
    return StreamConfig(name="s", source="chats", chat=chat, page_size=5, max_parallel=3, traversal=traversal)


def _chat(number: int, **fields: Any) -> Chat:
    return Chat(number, ids=list(IDS), **fields)


def _migrated() -> list[Chat]:
    return [
        Chat(1006, "group", ids=list(range(500, 520)), migrated_to=1007),
        _chat(1007, migrated_from=1006, migrated_from_max_id=519),
    ]


CASES: dict[str, Any] = {
    "channel": partial(case, [_chat(1001, kind="channel")], []),
    "group": partial(case, [_chat(1002, kind="group")], []),
    "private": partial(case, [_chat(1003, kind="user")], []),
    "bad_line": partial(case, [_chat(1004)], [Fault("drop", 4, every=9), Fault("salt", 6, every=7)]),
    "shifted": partial(case, [_chat(1005)], [Fault("shift", 1, every=1), Fault("empty", 8, every=11)]),
}
CASES |= {f"{name}-offset": partial(build, traversal="OFFSET") for name, build in CASES.items()}
CASES["migrated-offset"] = partial(case, _migrated(), [], traversal="OFFSET")
