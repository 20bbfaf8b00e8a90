"""One call's pass over a chat: pages of its splits, gathered to batches, and the checkpoint behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import CheckpointConflictError, ConfigError, ProducerError, TransientError
from producer.model import KeyPosition, Position, Split
from producer.retry import attempts
from producer.sources.telegram.chats import Chat
from producer.sources.telegram.config import TelegramConfig
from producer.sources.telegram.history import count_after
from producer.sources.telegram.media import Downloads
from producer.sources.telegram.reader import ChatReader, place_of
from producer.tgdata.arguments import Query
from producer.tgdata.checkpoint_file import CheckpointFile, MessageCheckpoint
from producer.tgdata.connection import Lease
from producer.tgdata.pace import SHORT_OF_RATE

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rate:
    """What a batch cost: the waits that Telegram ordered since the batch before it, and how much of the full rate is
    left, in percent: 0 during such a wait, at most 9 after one, 100 undisturbed."""

    waits: int
    remaining: int


class Reading:
    """All state of one call is here: nothing of it is shared with another call."""

    def __init__(
        self,
        lease: Lease,
        query: Query,
        file: CheckpointFile | None,
        *,
        config: TelegramConfig,
        give_up_after_s: float,
    ) -> None:
        self._lease = lease
        self._source = lease.source
        self._query = query
        self._file = file
        self._config = config
        self._give_up_after_s = give_up_after_s
        self._readers: list[tuple[ChatReader, Position]] = []
        self._left = query.limit
        self.checkpoint = MessageCheckpoint(query.group_id)
        self.schema: pa.Schema = None
        self.total: int | None = None
        self.answer_s = 0.0  #: how long the last answer took
        self._waits_before = lease.source.limiter.ordered_waits

    async def open(self) -> None:
        """Finds the chat, where to begin, and how much there is."""
        query, source = self._query, self._source
        found = self._file.read() if self._file is not None else None
        stream = self._stream()
        try:
            dataset = await self._again(source.describe, stream)
        except ConfigError as error:
            raise ConfigError(f"group_id: {error.message}", hint=error.hint) from None
        self.schema = dataset.schema
        splits = await self._again(source.plan, stream, dataset)
        chats = await self._again(source.succession, stream)
        if found is not None:
            await self._check_owner(found, [chat.marked_id for chat in chats])
            self.checkpoint = found
        begin = self._begin([chat.marked_id for chat in chats])
        total = 0
        for split in splits:
            (chat, after), (_, last) = self._ends(split, chats)
            if begin is not None and begin[0] != chat.marked_id:
                continue  # a chat of before the migration that has been read to its end
            after = max(after, begin[1] if begin is not None else 0)
            begin = None
            reader = self._open_reader(stream, split, chats)
            self._readers.append((reader, KeyPosition((chat.marked_id, after))))
            total += await self._again(count_after, source.account, chat, after)
            if query.end_date is not None:
                total -= await self._again(count_after, source.account, chat, last)
        self.total = total if query.limit is None else min(total, query.limit)

    def _stream(self) -> StreamConfig:
        query = self._query
        dates = {name: date for name in ("start_date", "end_date") if (date := getattr(query, name)) is not None}
        return StreamConfig.model_validate(
            {"name": "tgdata", "source": "telegram", "chat": query.group_id, "topic": "none", "max_parallel": 1}
            | ({"where": dates} if dates else {})
        )

    @staticmethod
    def _ends(split: Split, chats: Sequence[Chat]) -> tuple[tuple[Chat, int], tuple[Chat, int]]:
        lower, upper = place_of(split.lower), place_of(split.upper)
        assert lower is not None
        assert upper is not None
        chat = next(chat for chat in chats if chat.marked_id == lower[0])
        return (chat, lower[1]), (chat, upper[1])

    def _begin(self, chat_ids: list[int]) -> tuple[int, int] | None:
        """(chat, id) after which to read; None: from the very beginning."""
        last, chat_id = self.checkpoint.last_message_id, self.checkpoint.chat_id
        if last and chat_id in chat_ids[:-1]:
            assert chat_id is not None
            return chat_id, last
        after = max(last, self._query.after_id)
        return (chat_ids[-1], after) if after else None

    def _open_reader(self, stream: StreamConfig, split: Split, chats: Sequence[Chat]) -> ChatReader:
        downloads = Downloads(self._source.account, self._config) if Downloads.wanted(self._config) else None
        enrich = downloads.enrich if downloads else None
        return self._source.open_reader(stream, split, self.schema, chats, enrich=enrich)

    async def _check_owner(self, found: MessageCheckpoint, chat_ids: Sequence[int]) -> None:
        """CheckpointConflictError for the checkpoint of another chat or account."""
        assert self._file is not None
        path, group_id, me = self._file.path, self._query.group_id, int(self._source.account.me.id)
        if found.account_id is not None and found.account_id != me:
            raise CheckpointConflictError(
                f"checkpoint_file {path}: it belongs to account {found.account_id}, and this account is {me}",
                hint="name another file; for a channel or supergroup, whose ids are the same for all accounts, "
                "account_id may be removed from it",
            )
        if await self._chat_of(found) not in chat_ids:
            was = f" (chat {found.chat_id})" if found.chat_id is not None else ""
            raise CheckpointConflictError(
                f"checkpoint_file {path}: it is the checkpoint of group {found.group_id}{was}, and group_id "
                f"{group_id} is chat {chat_ids[-1]}",
                hint="name another file: each chat needs its own",
            )

    async def _chat_of(self, found: MessageCheckpoint) -> int | None:
        """The id of the checkpoint's chat; None where there is no such chat any more."""
        if found.chat_id is not None:
            return found.chat_id
        try:
            return (await self._again(self._source.chats.resolve, found.group_id)).marked_id
        except TransientError:
            raise
        except ProducerError:
            return None

    async def _again(self, work: Callable[..., Awaitable[T]], *args: Any) -> T:
        """The result of `work`, which is repeated after transient errors until the connection is closed."""
        async with self._lease.unless_closed():
            return await _persistently(partial(work, *args), self._give_up_after_s)

    @property
    def done(self) -> bool:
        """Whether there is nothing more to read."""
        return not self._readers or self._left == 0

    async def next(self, size: int) -> pa.Table | None:
        """Up to `size` messages; None at the end."""
        pages: list[pa.RecordBatch] = []
        want = size if self._left is None else min(size, self._left)
        while want > 0 and self._readers:
            reader, position = self._readers[0]
            page = await self._again(reader.fetch, position, want)
            self.answer_s = reader.answer_s
            if page.rows:
                pages.append(page.batch)
                want -= page.rows
            if page.last:
                del self._readers[0]
            elif page.position is not None:
                self._readers[0] = (reader, page.position)
        if not pages:
            return None
        table = pa.Table.from_batches(pages)
        if self._left is not None:
            self._left -= table.num_rows
        self.checkpoint = self.checkpoint.moved(
            chat_id=table["chat_id"][-1].as_py(),
            last_message_id=table["id"][-1].as_py(),
            count=table.num_rows,
            account_id=int(self._source.account.me.id),
        )
        return table

    def rate_since_last_batch(self) -> Rate:
        """The account's rate, with the waits since this was asked before."""
        limiter = self._source.limiter
        waits, self._waits_before = limiter.ordered_waits - self._waits_before, limiter.ordered_waits
        left = limiter.remaining
        return Rate(waits, min(left, (SHORT_OF_RATE - 1) // waits) if waits else left)

    async def pause(self, seconds: float) -> None:
        """Waits; ends early with an error where the connection is closed."""
        async with self._lease.unless_closed():
            await asyncio.sleep(seconds)

    def commit(self) -> None:
        """Writes the checkpoint behind the last batch, where there is a file for it."""
        if self._file is not None:
            self._file.save(self.checkpoint)


async def _persistently(work: Callable[[], Awaitable[T]], give_up_after_s: float) -> T:
    def quietly(error: TransientError, wait_s: float) -> None:
        log.info("retrying in %.1f s: %s", wait_s, error)

    async for attempt in attempts(give_up_after_s=give_up_after_s, before_sleep=quietly):
        with attempt:
            return await work()
    raise AssertionError("attempts either succeed or raise")
