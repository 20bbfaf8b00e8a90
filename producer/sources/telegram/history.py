"""Owns paging through one chat's history: messages.getHistory forward from an id, and where the end is.

The method's rules (core.telegram.org/api/offsets): at most 100 messages, newest first, counted from ``offset_id``
with ``add_offset``. To go forward one asks for the hundred that end just above the last known id. A short answer, or
one of nothing but deleted messages, is not the end; the last answer may come shifted, with rows that were seen. The
end is where nothing is newer than the last id and the newest message says so too.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from telethon import functions, types

from producer.sources.telegram.account import Account
from producer.sources.telegram.chats import Chat, marked_id

MESSAGES_PER_REQUEST = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, oldest first. `highest` is its greatest id, also of deleted messages; `newer` how many messages are
    newer than its newest, where the server says so; `count` all messages of the chat."""

    messages: tuple[Any, ...]
    highest: int
    entities: dict[int, Any]
    count: int
    newer: int | None

    @property
    def ids(self) -> set[int]:
        return {m.id for m in self.messages}


def forward(chat: Chat, after_id: int, limit: int) -> Any:
    """The request for the `limit` messages that follow `after_id`."""
    return _request(chat, offset_id=after_id + 1, add_offset=-limit, limit=limit)


def below(chat: Chat, through_id: int, *, skip: int, limit: int) -> Any:
    """The request for the newest `limit` messages up to `through_id`, without the newest `skip` of them."""
    return _request(chat, offset_id=through_id + 1, add_offset=skip, limit=limit)


def newest(chat: Chat, limit: int = 1, *, before_id: int = 0) -> Any:
    """The request for the newest messages (before an id, where one is given)."""
    return _request(chat, offset_id=before_id, limit=limit)


def _request(
    chat: Chat, *, offset_id: int = 0, add_offset: int = 0, limit: int, date: dt.datetime | None = None
) -> Any:
    return functions.messages.GetHistoryRequest(chat.peer, offset_id, date, add_offset, limit, 0, 0, 0)


def read(answer: Any, *, after_id: int = 0) -> Answer:
    """The answer in order, without what is not newer than `after_id`, and without MessageEmpty."""
    known = [m for m in answer.messages if m.id > after_id]
    known.sort(key=lambda m: m.id)
    return Answer(
        messages=tuple(m for m in known if not isinstance(m, types.MessageEmpty)),
        highest=known[-1].id if known else 0,
        entities={n: e for e in (*answer.users, *answer.chats) if (n := marked_id(e)) is not None},
        count=getattr(answer, "count", len(answer.messages)),
        newer=getattr(answer, "offset_id_offset", None),
    )


async def top(account: Account, chat: Chat) -> tuple[int, int]:
    """The newest id (0: none) and the number of messages."""
    answer = read(await account.ask(newest(chat), f"chat {chat.title!r}"))
    return answer.highest, answer.count


async def id_before(account: Account, chat: Chat, date: dt.datetime) -> int:
    """The newest id sent before `date`, by seeking: one request; 0 where all are later."""
    return read(await account.ask(_request(chat, limit=1, date=date), f"chat {chat.title!r}")).highest


async def id_at_row(account: Account, chat: Chat, rows_from_newest: int) -> int:
    """The id of the message that has so many newer ones; 0 where there are not so many."""
    request = _request(chat, add_offset=rows_from_newest, limit=1)
    return read(await account.ask(request, f"chat {chat.title!r}")).highest


async def count_after(account: Account, chat: Chat, after_id: int) -> int:
    """How many messages are newer than `after_id`, as the server counts them."""
    if after_id <= 0:
        return (await top(account, chat))[1]
    request = _request(chat, offset_id=after_id + 1, limit=1)
    answer = read(await account.ask(request, f"chat {chat.title!r}"))
    return answer.newer if answer.newer is not None else max(0, answer.count - after_id)
