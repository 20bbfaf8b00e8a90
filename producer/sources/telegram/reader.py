"""Owns the reading of one split of a chat: pages of messages, edits and deletions in the newest ones, migration.

A fetch gathers several answers, but never for long: what it has is handed over when a second or two have passed, when
the next turn is far, or when something fails, so that acknowledged progress is not held up by a flood wait.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from telethon import types

from producer.errors import PermanentError, RateLimitedError, SourceUnavailableError, TransientError
from producer.model import Json, KeyPosition, Page, Position, Split
from producer.sources.telegram import history, record
from producer.sources.telegram.account import Account, asking_for
from producer.sources.telegram.chats import Chat, Chats

REQUEST = "GetHistoryRequest"
GATHER_S = 2.0  #: a page is handed over after this long, however short it is
HOLD_S = 1.0  #: the longest wait for a turn within one fetch: the engine looks for a stop signal in between
MAX_NEWS = 10_000  #: edits, and deletions, that updates tell of between two fetches
MAX_TOLD = 1000  #: pages with edits or deletions that are remembered until the engine says what was committed
EMPTY_ANSWERS = 3  #: an answer without anything new, before a newer message that is there, is asked again so often


@dataclass(slots=True)
class Watch:
    """What is remembered of the newest messages read: id -> edit date, to tell edits and deletions by reading again."""

    size: int
    edits: dict[int, dt.datetime | None] = field(default_factory=dict)
    resumed: bool = False  #: nothing is remembered of what was read before; cleared when the whole window was read

    def saw(self, messages: Sequence[Any]) -> None:
        """Remembers messages that were just handed over."""
        if self.size:
            self.edits.update((m.id, m.edit_date) for m in messages)
            self._trim()

    def changes(self, answer: history.Answer, last_id: int, *, whole: bool) -> tuple[list[Any], list[int]]:
        """Messages up to `last_id` that were edited, and ids that are gone, as an answer tells that reaches down from
        there (`whole`: to the chat's beginning).

        After a restart nothing is remembered, so every edited message of the window counts as just edited.
        """
        seen = [m for m in answer.messages if m.id <= last_id]
        known = self.edits
        edited = [
            m
            for m in seen
            if m.edit_date is not None and (known[m.id] != m.edit_date if m.id in known else self.resumed)
        ]
        lowest = 0 if whole else min((m.id for m in answer.messages), default=last_id + 1)
        present = answer.ids
        gone = [i for i in known if lowest <= i <= last_id and i not in present]
        for number in gone:
            del known[number]
        self.saw(seen)
        return edited, gone

    def forget_edits(self, numbers: Iterable[int]) -> None:
        """These messages count as edited when they are seen again."""
        self.edits.update((number, None) for number in numbers if number in self.edits)

    def covers(self, message_id: int) -> bool:
        """Whether messages below this one are still in the window."""
        return message_id > 1 and (len(self.edits) < self.size or message_id > min(self.edits))

    def _trim(self) -> None:
        for number in sorted(self.edits)[: max(0, len(self.edits) - self.size)]:
            del self.edits[number]


@dataclass(slots=True)
class News:
    """What updates told of one chat since the last fetch."""

    edited: dict[int, tuple[Any, dict[int, Any]]] = field(default_factory=dict)  # id -> message, entities
    deleted: set[int] = field(default_factory=set)

    def forget_oldest(self) -> None:
        """Holds the memory bounded while nobody fetches: a paused stream."""
        for number in list(self.edited)[: max(0, len(self.edited) - MAX_NEWS)]:
            del self.edited[number]
        for number in sorted(self.deleted)[: max(0, len(self.deleted) - MAX_NEWS)]:
            self.deleted.discard(number)


#: Downloads what a stream asks for beside the messages: rows, chat, messages and entities of one answer.
Enrich = Callable[[record.Rows, Chat, Sequence[Any], dict[int, Any]], Awaitable[None]]


@dataclass(slots=True)
class _Cursor:
    """Where a fetch stands, and what it has gathered."""

    chat: Chat
    last: int
    rows: record.Rows
    start: tuple[int, int]
    gone: list[int] = field(default_factory=list)
    told: dict[int, News] = field(default_factory=dict)  #: by chat
    empty_answers: int = 0
    end: bool = False
    answered_at: float | None = None

    @property
    def place(self) -> tuple[int, int]:
        return self.chat.marked_id, self.last

    def tells(self, edited: Mapping[int, tuple[Any, dict[int, Any]]], deleted: Iterable[int]) -> None:
        """Notes what the page has beside the messages between its positions."""
        if edited or deleted:
            told = self.told.setdefault(self.chat.marked_id, News())
            told.edited.update(edited)
            told.deleted.update(deleted)

    @property
    def moved(self) -> bool:
        return len(self.rows) > 0 or self.place != self.start


class ChatReader:
    """A `PageReader` over one split; positions are (chat_id, id).

    An open split follows a basic group into the supergroup that it becomes, whose ids begin anew.
    """

    def __init__(
        self,
        account: Account,
        chats: Chats,
        stream: str,
        split: Split,
        succession: Sequence[Chat],
        schema: pa.Schema,
        *,
        bounds: tuple[dt.datetime | None, dt.datetime | None] = (None, None),
        edit_window: int = 0,
        enrich: Enrich | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self._chats = chats
        self._stream = stream
        self._succession = list(succession)
        self._schema = schema
        self._bounds = bounds
        self._enrich = enrich
        self._clock = clock
        self._start = place_of(split.lower) or (succession[0].marked_id, 0)
        self._upper = place_of(split.upper)
        self._watch = Watch(edit_window if self._upper is None else 0)
        self._looking = False
        self._fresh = True
        self._compared_down_to = 0  # within a window of more than one answer
        self.news: dict[int, News] = {}  #: by chat; the source adds to it where updates are wanted
        self._pages_told = 0  # pages with edits or deletions, which no position stands for
        self._told: deque[tuple[int, dict[int, News]]] = deque(maxlen=MAX_TOLD)  # what was in them, by chat
        self.top = 0  #: the newest id known of the chat that is being read
        self.count = 0  #: how many messages that chat has
        self.answer_s = 0.0  #: how long the last answer took

    @property
    def succession(self) -> tuple[Chat, ...]:
        return tuple(self._succession)

    def follows(self, chat_id: int) -> bool:
        """Whether this reader goes on with what is new in the chat."""
        return self._upper is None and any(c.marked_id == chat_id for c in self._succession)

    def remembers(self, message_id: int) -> bool:
        """Whether the message is among the newest that were read."""
        return message_id in self._watch.edits

    def restore(self, detail: Mapping[str, Json] | None) -> None:
        """See `RememberingReader`: edits and deletions of pages that were not committed come once more."""
        self._fresh = True
        committed = int((detail or {}).get("told", 0))
        for _, chats in (page for page in self._told if page[0] > committed):
            for chat_id, told in chats.items():
                news = self.news.setdefault(chat_id, News())
                news.edited = told.edited | news.edited
                news.deleted |= told.deleted
                self._watch.forget_edits(told.edited)
        self._told.clear()
        self._pages_told = max(self._pages_told, committed)

    async def close(self) -> None:
        """Nothing to let go: the connection is the account's."""

    async def fetch(self, position: Position | None, limit: int) -> Page:
        """See `PageReader.fetch`. Where no turn comes within `HOLD_S`, the page is empty and not the last."""
        chat_id, last = start = place_of(position) or self._start
        asking_for.set(self._stream)
        if self._fresh:
            self._fresh, self._watch.resumed = False, position is not None
        cursor = _Cursor(self._chat(chat_id), last, record.Rows(self._account.me.id), start)
        try:
            await self._gather(cursor, limit)
        finally:
            if cursor.told:
                self._pages_told += 1
                self._told.append((self._pages_told, cursor.told))
        return await self._page(cursor, resumed=position is not None)

    async def _gather(self, cursor: _Cursor, limit: int) -> None:
        deadline = self._clock() + GATHER_S
        try:
            while not cursor.end and len(cursor.rows) < limit and await self._turn(cursor, deadline):
                if self._looking:
                    await self._look(cursor)
                else:
                    await self._forward(cursor, min(history.MESSAGES_PER_REQUEST, limit - len(cursor.rows)))
        except RateLimitedError:
            pass  # the limiter knows; the next fetch waits for its turn
        except TransientError:
            if not cursor.moved:
                raise
            # what is there goes out first: the next fetch meets the failure again, or does not
        await self._take_news(cursor)

    async def _turn(self, cursor: _Cursor, deadline: float) -> bool:
        left_s = min(HOLD_S, deadline - self._clock()) if cursor.moved else HOLD_S
        return left_s > 0 and await self._account.limiter.acquire(REQUEST, at_most_s=left_s) <= 0

    async def _call(self, cursor: _Cursor, request: Any) -> Any:
        asked_at = time.monotonic()
        answer = await self._account.call(request, f"chat {cursor.chat.title!r}")
        self.answer_s = time.monotonic() - asked_at
        cursor.answered_at = time.time()
        return answer

    async def _forward(self, cursor: _Cursor, limit: int) -> None:
        """Reads the next messages; where nothing is new, the next request looks whether that is the end."""
        raw = await self._call(cursor, history.forward(cursor.chat, cursor.last, limit))
        answer = history.read(raw, after_id=cursor.last)
        if not answer.highest:
            self._looking = True
            return
        cursor.empty_answers = 0
        await self._learn_successor(cursor.chat, answer)
        upper = self._upper_in(cursor.chat)
        wanted = [m for m in answer.messages if upper is None or m.id <= upper]
        await self._add(cursor, wanted, answer.entities)
        self._watch.saw(wanted)
        cursor.last = answer.highest if upper is None else min(answer.highest, upper)
        cursor.end = cursor.last == upper
        self.count = answer.count
        self.top = max(self.top, answer.highest)

    async def _look(self, cursor: _Cursor) -> None:
        """Reads the newest messages: they tell whether this is the end, and what was edited or deleted lately."""
        limit = max(1, min(history.MESSAGES_PER_REQUEST, self._watch.size))
        answer = history.read(await self._call(cursor, history.newest(cursor.chat, limit)))
        self.count, self.top = answer.count, answer.highest
        self._looking = False
        if answer.messages:
            await self._compare(cursor, answer, cursor.last)
        if answer.highest > cursor.last:
            cursor.empty_answers += 1
            if cursor.empty_answers > EMPTY_ANSWERS:
                message = f"chat {cursor.chat.title!r}: Telegram answers with nothing after message {cursor.last}"
                raise SourceUnavailableError(f"{message}, though there is {answer.highest}")
            return
        successor = self._successor(cursor.chat) if self._upper_in(cursor.chat) is None else None
        if successor is not None:
            cursor.chat, cursor.last, self.top = successor, 0, 0
            self._watch, self._compared_down_to = Watch(self._watch.size), 0
            return
        cursor.end = self._looking = True
        if self._watch.size > history.MESSAGES_PER_REQUEST:
            await self._look_back(cursor, answer)

    async def _look_back(self, cursor: _Cursor, newest: history.Answer) -> None:
        """Reads one answer further down in a large window: with each poll the next one, then from the top again."""
        before = self._compared_down_to or min((m.id for m in newest.messages), default=0)
        if before <= 1 or await self._account.limiter.acquire(REQUEST, at_most_s=HOLD_S) > 0:
            return
        request = history.newest(cursor.chat, history.MESSAGES_PER_REQUEST, before_id=before)
        answer = history.read(await self._call(cursor, request))
        await self._compare(cursor, answer, before - 1)
        lowest = min((m.id for m in answer.messages), default=0)
        self._compared_down_to = lowest if self._watch.covers(lowest) else 0
        if not self._compared_down_to:
            self._watch.resumed = False

    async def _compare(self, cursor: _Cursor, answer: history.Answer, last_id: int) -> None:
        """Sends anew what an answer shows to be edited, and notes what is gone."""
        if not self._watch.size:
            return
        edited, gone = self._watch.changes(answer, last_id, whole=answer.count == len(answer.messages))
        cursor.gone += gone
        cursor.tells({m.id: (m, answer.entities) for m in edited}, gone)
        await self._add(cursor, edited, answer.entities)
        if self._watch.size <= history.MESSAGES_PER_REQUEST:
            self._watch.resumed = False

    async def _add(self, cursor: _Cursor, messages: Sequence[Any], entities: dict[int, Any]) -> None:
        start, end = self._bounds
        if start is not None or end is not None:
            messages = [m for m in messages if (start is None or m.date >= start) and (end is None or m.date <= end)]
        if messages:
            before = len(cursor.rows)
            cursor.rows.extend(cursor.chat, messages, entities)
            if self._enrich is not None:
                try:
                    await self._enrich(cursor.rows, cursor.chat, messages, entities)
                except BaseException:
                    cursor.rows.cut(before)  # the cursor is before them: they are read again
                    raise

    async def _take_news(self, cursor: _Cursor) -> None:
        """What updates told of messages that were read before; what lies ahead comes with the history."""
        news = self.news.pop(cursor.chat.marked_id, None)
        if news is None:
            return
        cursor.tells(news.edited, news.deleted)
        for number, (message, entities) in news.edited.items():
            if number <= cursor.last and self._watch.edits.get(number) != message.edit_date:
                await self._add(cursor, [message], entities)
                self._watch.saw([message])
        cursor.gone += sorted(i for i in news.deleted if i <= cursor.last and i not in cursor.gone)
        for number in news.deleted:
            self._watch.edits.pop(number, None)

    async def _page(self, cursor: _Cursor, *, resumed: bool) -> Page:
        rows = cursor.rows
        batch = await asyncio.to_thread(rows.batch, self._schema) if len(rows) else record.empty_batch(self._schema)
        return Page(
            batch,
            KeyPosition(cursor.place) if cursor.moved or resumed else None,
            last=cursor.end,
            tombstones=record.tombstones(cursor.chat, cursor.gone) if cursor.gone else None,
            source_time=cursor.answered_at,
            detail={"told": self._pages_told} if cursor.told else None,
        )

    # --- migration ---

    def _upper_in(self, chat: Chat) -> int | None:
        """The last id to read of the chat, where the split ends in it."""
        return self._upper[1] if self._upper is not None and self._upper[0] == chat.marked_id else None

    def _chat(self, chat_id: int) -> Chat:
        for chat in self._succession:
            if chat.marked_id == chat_id:
                return chat
        raise PermanentError(
            f"the checkpoint is in chat {chat_id}, which is not {self._succession[-1].title!r}",
            hint="`producer checkpoint reset` to begin anew",
        )

    async def _learn_successor(self, chat: Chat, answer: history.Answer) -> None:
        """The last message of a basic group that migrates says where to."""
        migrates = any(
            isinstance(getattr(m, "action", None), types.MessageActionChatMigrateTo) for m in answer.messages
        )
        if migrates and self._upper is None and chat is self._succession[-1]:
            successor = await self._chats.successor(chat)
            if successor is not None:
                self._succession.append(successor)

    def _successor(self, chat: Chat) -> Chat | None:
        at = self._succession.index(chat)
        return self._succession[at + 1] if at + 1 < len(self._succession) else None


def place_of(position: Position | None) -> tuple[int, int] | None:
    """(chat_id, message id) of a position; PermanentError for a position of another kind of source."""
    match position:
        case None:
            return None
        case KeyPosition((int(chat_id), int(message_id))):
            return chat_id, message_id
    raise PermanentError("the checkpoint is not one of a Telegram chat", hint="`producer checkpoint reset`")
