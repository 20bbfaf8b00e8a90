"""Owns `TgData`: chats as pandas DataFrames, over the same source, paging and rate limiter as the Kafka pipeline.

    async with TgData() as tg:
        async for batch in tg.get_all_messages(group_id="@name", checkpoint_file="checkpoint.json"):
            ...

A checkpoint moves when the caller asks for the next batch, or when the loop ends by itself: a batch whose processing
failed is delivered again. Without ``async with`` every call connects and disconnects by itself.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Literal, Self, TypeVar, overload

import pyarrow as pa
from pydantic import ValidationError

try:
    import pandas as pd
except ImportError:
    raise ImportError("TgData needs pandas: pip install 'streaming-producer[pandas]'") from None

from producer.config import StreamConfig
from producer.errors import ConfigError, TransientError
from producer.model import KeyPosition, Position, Split
from producer.retry import attempts
from producer.sources.telegram.config import TelegramConfig
from producer.sources.telegram.history import count_after
from producer.sources.telegram.media import Downloads
from producer.sources.telegram.reader import ChatReader, place_of
from producer.sources.telegram.source import TelegramSource
from producer.tgfile import MessageCheckpoint, load, save

log = logging.getLogger(__name__)

T = TypeVar("T")

GIVE_UP_AFTER_S = 600.0
MIN_BATCH = 100
MAX_DELAY_S = 30.0
SHORT_OF_RATE = 10  #: percent of the full rate left, under which ``rate_limit_aware`` doubles the delay

#: Told (messages so far, messages in all, messages a second) after each batch; may be a coroutine function.
ProgressCallback = Callable[[int, int | None, float], Any]

_DTYPES = {
    pa.int64(): pd.Int64Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
}


class MessageFrame(pd.DataFrame):  # type: ignore[misc]
    """A DataFrame of messages, one a row, integers as integers; `metadata` tells how the batch was read.

    ``rate_limit_remaining`` (percent of the full rate, 0 during a flood wait), ``response_time`` (seconds of the last
    answer), ``delay`` (seconds before the next batch), ``current`` and ``total`` (messages), ``last_message_id``.
    """

    _metadata: ClassVar[list[str]] = ["metadata"]
    metadata: Mapping[str, Any] = MappingProxyType({})

    @property
    def _constructor(self) -> type[MessageFrame]:
        return MessageFrame


@dataclass(frozen=True, slots=True)
class _Query:
    """What one call reads."""

    group_id: int | str
    checkpoint_file: str | Path | None
    after_id: int
    start_date: datetime | None
    end_date: datetime | None
    limit: int | None
    include_profile_photos: bool


class TgData:
    """One Telegram account. Settings by keyword, else ``TELEGRAM_API_ID``, ``TELEGRAM_API_HASH``, ``TELEGRAM_SESSION``.

    `session` is a session string (see ``producer telegram login``) or the path of a file that holds one. Other
    settings are those of `TelegramConfig`; ``TELEGRAM_MIN_DELAY_S`` gives its ``min_delay_s``. Raises ConfigError where
    one is missing.
    """

    def __init__(
        self,
        *,
        api_id: int | None = None,
        api_hash: str | None = None,
        session: str | None = None,
        profile_photos_path: str = "profile_photos",
        give_up_after_s: float = GIVE_UP_AFTER_S,
        **settings: Any,
    ) -> None:
        if "min_delay_s" not in settings and (least := os.environ.get("TELEGRAM_MIN_DELAY_S")):
            settings["min_delay_s"] = least
        given = {"api_id": api_id, "api_hash": api_hash, "session": session}
        for name, value in given.items():
            if value is None:
                given[name] = os.environ.get(f"TELEGRAM_{name.upper()}") or None
            if given[name] is None:
                raise ConfigError(f"{name} is missing", hint=f"give it to TgData, or set TELEGRAM_{name.upper()}")
        text = str(given["session"])
        if len(text) < 256 and Path(text).is_file():
            given["session"] = Path(text).read_text(encoding="utf-8").strip()
        try:
            self._config = TelegramConfig.model_validate(given | settings)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
        self._photos_path = profile_photos_path
        self._give_up_after_s = give_up_after_s
        self._source = TelegramSource(self._config)
        self._users = 0
        self._pending: tuple[str | Path, MessageCheckpoint] | None = None

    async def __aenter__(self) -> Self:
        await self._source.start()
        self._users += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._settle()
        await self._let_go()

    async def get_all_messages(
        self,
        group_id: int | str,
        checkpoint_file: str | Path | None = None,
        after_id: int = 0,
        batch_size: int = 1000,
        delay: float = 0,
        rate_limit_aware: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        progress_callback: ProgressCallback | None = None,
        *,
        limit: int | None = None,
        include_profile_photos: bool = False,
        with_progress: bool = False,
        use_adaptive_sizing: bool = False,
    ) -> AsyncIterator[MessageFrame]:
        """All messages that are there now, oldest first, in batches of `batch_size`.

        Begins after the checkpoint's message, or after `after_id`, whichever is later; both dates are included.
        `delay` seconds pass between two batches; with `rate_limit_aware` they double (to 30) while Telegram slows us
        down, and shrink again. With `use_adaptive_sizing` a batch is as large as about two seconds allow, at most
        `batch_size`.
        """
        query = _Query(group_id, checkpoint_file, after_id, start_date, end_date, limit, include_profile_photos)
        report = _Progress(progress_callback, with_progress)
        pause_s, size = delay, min(MIN_BATCH, batch_size) if use_adaptive_sizing else batch_size
        async with self._connected(), aclosing(_Reading(self, query)) as reading:
            await reading.open()
            while True:
                begun = time.monotonic()
                table = await reading.next(size)
                if table is None:
                    break
                if rate_limit_aware:
                    pause_s = next_delay(pause_s, delay, self._source.limiter.remaining)
                await report.tell(table.num_rows, reading.total)
                yield self._frame(table, delay=pause_s, current=report.current, total=reading.total)
                reading.commit()
                if use_adaptive_sizing:
                    size = _next_size(size, time.monotonic() - begun, batch_size)
                if not reading.done:
                    await asyncio.sleep(pause_s)

    @overload
    async def get_messages(
        self,
        group_id: int | str,
        after_id: int = ...,
        limit: int | None = ...,
        start_date: datetime | None = ...,
        end_date: datetime | None = ...,
        include_profile_photos: bool = ...,
        with_progress: bool = ...,
        progress_callback: ProgressCallback | None = ...,
        *,
        checkpoint_file: str | Path | None = ...,
        batch_mode: Literal[False] = ...,
        batch_size: int = ...,
        use_adaptive_sizing: bool = ...,
    ) -> MessageFrame: ...

    @overload
    async def get_messages(
        self,
        group_id: int | str,
        after_id: int = ...,
        limit: int | None = ...,
        start_date: datetime | None = ...,
        end_date: datetime | None = ...,
        include_profile_photos: bool = ...,
        with_progress: bool = ...,
        progress_callback: ProgressCallback | None = ...,
        *,
        checkpoint_file: str | Path | None = ...,
        batch_mode: Literal[True],
        batch_size: int = ...,
        use_adaptive_sizing: bool = ...,
    ) -> AsyncIterator[MessageFrame]: ...

    async def get_messages(
        self,
        group_id: int | str,
        after_id: int = 0,
        limit: int | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        include_profile_photos: bool = False,
        with_progress: bool = False,
        progress_callback: ProgressCallback | None = None,
        *,
        checkpoint_file: str | Path | None = None,
        batch_mode: bool = False,
        batch_size: int = 1000,
        use_adaptive_sizing: bool = False,
    ) -> MessageFrame | AsyncIterator[MessageFrame]:
        """The messages after the checkpoint or `after_id`, oldest first and at most `limit`, as one DataFrame.

        With `batch_mode` an iterator as of `get_all_messages`. Otherwise the checkpoint moves with the next call or
        at the normal end of the ``async with`` block; without such a block, as this returns.
        """
        if batch_mode:
            return self.get_all_messages(
                group_id, checkpoint_file, after_id, batch_size, 0, True, start_date, end_date, progress_callback,
                limit=limit, include_profile_photos=include_profile_photos, with_progress=with_progress,
                use_adaptive_sizing=use_adaptive_sizing,
            )  # fmt: skip
        self._settle()
        query = _Query(group_id, checkpoint_file, after_id, start_date, end_date, limit, include_profile_photos)
        report = _Progress(progress_callback, with_progress)
        async with self._connected(), aclosing(_Reading(self, query)) as reading:
            await reading.open()
            tables = []
            while (table := await reading.next(batch_size)) is not None:
                tables.append(table)
                await report.tell(table.num_rows, reading.total)
            if checkpoint_file is not None and tables:
                self._pending = (checkpoint_file, reading.checkpoint)
                if self._users == 1:  # only this call: nobody would settle it later
                    self._settle()
            whole = pa.concat_tables(tables) if tables else pa.Table.from_batches([], reading.schema)
            return self._frame(whole, delay=0.0, current=report.current, total=reading.total)

    # --- the connection, and what has been delivered but not been asked on from ---

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        self._users += 1
        try:
            await self._source.start()
            yield
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        self._users -= 1
        if not self._users:
            await self._source.close()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            save(*pending)

    def _frame(self, table: pa.Table, *, delay: float, current: int, total: int | None) -> MessageFrame:
        frame = MessageFrame(table.to_pandas(types_mapper=_DTYPES.get))
        frame.metadata = {
            "rate_limit_remaining": self._source.limiter.remaining,
            "response_time": self._source.account.answer_s,
            "delay": delay,
            "current": current,
            "total": total,
            "last_message_id": table["id"][-1].as_py() if table.num_rows else None,
        }
        return frame

    def _reader(self, query: _Query, stream: StreamConfig, split: Split, schema: pa.Schema, chats: Any) -> ChatReader:
        config = self._config
        if query.include_profile_photos and config.profile_photos_path is None:
            config = config.model_copy(update={"profile_photos_path": self._photos_path})
        downloads = Downloads(self._source.account, config) if Downloads.wanted(config) else None
        return self._source.open_reader(stream, split, schema, chats, enrich=downloads.enrich if downloads else None)


class _Reading:
    """One pass over a chat: pages of its splits, gathered to batches, and the checkpoint behind them."""

    def __init__(self, owner: TgData, query: _Query) -> None:
        self._owner = owner
        self._source = owner._source
        self._query = query
        self._where = {name: date for name in ("start_date", "end_date") if (date := getattr(query, name)) is not None}
        self._readers: list[tuple[ChatReader, Position]] = []
        self._left = query.limit
        self.checkpoint = MessageCheckpoint(query.group_id)
        self.schema: pa.Schema = None
        self.total: int | None = None

    async def aclose(self) -> None:
        """Nothing stays open: the connection is the account's."""

    async def open(self) -> None:
        """Finds the chat, where to begin, and how much there is."""
        query, source = self._query, self._source
        if query.checkpoint_file is not None:
            self.checkpoint = load(query.checkpoint_file, query.group_id)
        stream = StreamConfig.model_validate(
            {"name": "tgdata", "source": "telegram", "chat": query.group_id, "topic": "none", "max_parallel": 1}
            | ({"where": self._where} if self._where else {})
        )
        dataset = await self._again(source.describe, stream)
        self.schema = dataset.schema
        chats = await source.succession(stream)
        begin = self._begin([chat.marked_id for chat in chats])
        total = 0
        for split in await self._again(source.plan, stream, dataset):
            lower, upper = place_of(split.lower), place_of(split.upper)
            assert lower is not None
            assert upper is not None
            chat = next(c for c in chats if c.marked_id == lower[0])
            if begin is not None and begin[0] != chat.marked_id:
                continue  # a chat of before the migration that has been read to its end
            after = max(lower[1], begin[1] if begin is not None else 0)
            begin = None
            self._readers.append(
                (self._owner._reader(query, stream, split, self.schema, chats), KeyPosition((chat.marked_id, after)))
            )
            total += await self._again(count_after, source.account, chat, after)
            if query.end_date is not None:
                total -= await self._again(count_after, source.account, chat, upper[1])
        self.total = total if query.limit is None else min(total, query.limit)

    def _begin(self, chat_ids: list[int]) -> tuple[int, int] | None:
        """(chat, id) after which to read; None: from the very beginning."""
        if self.checkpoint.last_message_id and self.checkpoint.chat_id in chat_ids[:-1]:
            assert self.checkpoint.chat_id is not None
            return self.checkpoint.chat_id, self.checkpoint.last_message_id
        after = max(self.checkpoint.last_message_id, self._query.after_id)
        return (chat_ids[-1], after) if after else None

    async def _again(self, work: Callable[..., Awaitable[T]], *args: Any) -> T:
        return await _persistently(partial(work, *args), self._owner._give_up_after_s)

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
            chat_id=table["chat_id"][-1].as_py(), last_message_id=table["id"][-1].as_py(), count=table.num_rows
        )
        return table

    def commit(self) -> None:
        """Writes the checkpoint behind the last batch, where there is a file for it."""
        if self._query.checkpoint_file is not None:
            save(self._query.checkpoint_file, self.checkpoint)


async def _persistently(work: Callable[[], Awaitable[T]], give_up_after_s: float) -> T:
    """The result of `work`, which is repeated after transient errors."""

    def quietly(error: TransientError, wait_s: float) -> None:
        log.info("retrying in %.1f s: %s", wait_s, error)

    async for attempt in attempts(give_up_after_s=give_up_after_s, before_sleep=quietly):
        with attempt:
            return await work()
    raise AssertionError("attempts either succeed or raise")


class _Progress:
    """Counts what was delivered, and tells it."""

    def __init__(self, callback: ProgressCallback | None, shown: bool) -> None:
        self._callback = callback
        self._shown = shown
        self._started = time.monotonic()
        self.current = 0

    async def tell(self, rows: int, total: int | None) -> None:
        self.current += rows
        rate = self.current / max(time.monotonic() - self._started, 1e-9)
        if self._shown:
            of = f" of {total:,}" if total is not None else ""
            sys.stderr.write(f"{self.current:,}{of} messages, {rate:,.0f} a second\n")
        if self._callback is not None:
            result = self._callback(self.current, total, rate)
            if inspect.isawaitable(result):
                await result


def next_delay(delay_s: float, least_s: float, remaining: int) -> float:
    """The pause after a batch: doubled (from one second) up to 30 s while the rate is short, else nine tenths."""
    if remaining < SHORT_OF_RATE:
        return min(MAX_DELAY_S, max(1.0, delay_s * 2))
    shorter = delay_s * 0.9
    return max(least_s, shorter if shorter > 0.01 else 0.0)


def _next_size(size: int, seconds: float, most: int) -> int:
    """Twice as many after a batch that took under a second, half as many after more than four."""
    if seconds < 1:
        return min(most, size * 2)
    return max(min(MIN_BATCH, most), size // 2) if seconds > 4 else size
