"""Owns the Telegram source: a chat as a data set, its splits, its readers, and what updates tell."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from telethon import types

from producer.config import StreamConfig
from producer.errors import ConfigError
from producer.identity import Identity
from producer.model import Between, Checkpoint, Dataset, KeyPosition, Position, Split
from producer.ratelimit import RateLimiter, TokenBucket
from producer.sources.telegram import history, record
from producer.sources.telegram.account import Account, asking_for
from producer.sources.telegram.chats import Chat, Chats, marked_id
from producer.sources.telegram.config import TelegramConfig, chat_filter
from producer.sources.telegram.media import Downloads
from producer.sources.telegram.offset_reader import Leg, OffsetReader, count_in, end_of, newest_of, split_of
from producer.sources.telegram.reader import ChatReader, Enrich, News, place_of

if TYPE_CHECKING:
    from producer.coordination.redis_bucket import RedisTokenBucket

MIN_SPLIT_MESSAGES = 20_000  #: smaller pieces gain nothing: requests wait for one another at the rate limiter


class TelegramSource:
    """See `producer.protocols.Source`. All streams of one account share its connection and its rate limiter.

    Three attributes are told what happens, each with the name of the stream (or '' for the account as a whole), and may
    be set at any time: ``on_wait(stream, seconds)`` every wait for the rate limit
    (`producer_rate_limit_wait_seconds_total`), ``on_retry(stream, reason)`` every request that has to be repeated
    (`producer_retries_total`), ``on_news(stream)`` that an update told of the stream's chat, which is to be read at
    once. ``bucket`` is a limit shared with other processes.
    """

    def __init__(
        self,
        config: TelegramConfig,
        *,
        bucket: TokenBucket | None = None,
        on_wait: Callable[[str, float], None] = lambda stream, seconds: None,
        on_retry: Callable[[str, str], None] = lambda stream, reason: None,
        on_news: Callable[[str], None] = lambda stream: None,
    ) -> None:
        self.on_wait, self.on_retry, self.on_news = on_wait, on_retry, on_news
        self._config = config
        self._shared: RedisTokenBucket | None = None
        if config.rate_limit is not None and bucket is None:
            from producer.coordination.redis_bucket import RedisTokenBucket

            bucket = self._shared = RedisTokenBucket(config.rate_limit)
        self.limiter = RateLimiter(
            min_delay_s=config.min_delay_s,
            max_delay_s=config.max_delay_s,
            burst=config.burst,
            adaptive=config.adaptive,
            bucket=bucket,
            on_wait=lambda seconds: self.on_wait(asking_for.get(), seconds),
        )
        self.account = Account(
            api_id=config.api_id,
            api_hash=config.api_hash.get_secret_value(),
            session=config.session.get_secret_value(),
            limiter=self.limiter,
            request_timeout_s=config.request_timeout_s,
            takeout=config.takeout,
            listener=self._heard if config.updates else None,
            on_retry=lambda stream, reason: self.on_retry(stream, reason),
        )
        self.chats = Chats(self.account)
        self._successions: dict[str, tuple[Chat, ...]] = {}  # by chat as configured: what it was before, and itself
        self._readers: dict[tuple[str, str], ChatReader] = {}
        self._counting: dict[tuple[str, str], OffsetReader] = {}

    async def start(self) -> None:
        """Connects and proves the session. Idempotent."""
        await self.account.start()

    def give_up(self) -> None:
        """See `OneSessionSource.give_up`."""
        self.account.give_up()

    async def close(self) -> None:
        """Closes the connection."""
        self._readers.clear()
        self._counting.clear()
        if self._shared is not None:
            await self._shared.close()
        await self.account.close()

    async def describe(self, stream: StreamConfig) -> Dataset:
        """The chat's data set. ConfigError for an unknown chat and for what a chat cannot do (a key, an order)."""
        asking_for.set(stream.name)
        at = f"streams.{stream.name}"
        if stream.chat is None:
            hint = "chat: @name, a t.me link, a numeric id, or id:access_hash"
            raise ConfigError(f"{at}.table: a Telegram stream names a chat, not a table", hint=hint)
        if stream.mode == "timestamp":
            raise ConfigError(f"{at}.mode: a chat has no timestamp mode", hint="snapshot, tail or snapshot_then_tail")
        if stream.key is not None and tuple(stream.key) != record.KEY:
            raise ConfigError(f"{at}.key: a message's key is {', '.join(record.KEY)}", hint="leave key out")
        if stream.order_by is not None:
            raise ConfigError(f"{at}.order_by: messages come in the order of their ids", hint="leave order_by out")
        filters = chat_filter(stream.where, stream.name)
        if filters.end_date is not None and stream.mode != "snapshot":
            raise ConfigError(f"{at}.where.end_date: a tail has no end", hint="mode: snapshot")
        names = selected_fields(stream)
        chat = await self.chats.resolve(stream.chat)
        succession = await self.chats.succession(chat)
        self._successions[str(stream.chat)] = succession
        count = sum([(await history.top(self.account, c))[1] for c in succession])
        start, end = filters.bounds
        return Dataset(
            name=stream.name,
            schema=pa.schema([record.SCHEMA.field(n) for n in names]),
            key=record.KEY,
            order=record.KEY,
            identity={
                "chat": chat.marked_id,
                "columns": stream.columns,
                "exclude": stream.exclude,
                "start": str(start),
                "end": str(end),
            },
            rows_estimate=count,
            origin=Identity({"source": "telegram", "account": str(self.account.me.id), "chat": str(chat.marked_id)}),
            row_bytes_estimate=400,
            namespace=record.NAMESPACE,
            comment=f"{chat.kind} {chat.title}",
            value_schema=record.avro_schema(names),
            key_schema=record.avro_schema(record.KEY, record="MessageKey"),
        )

    async def plan(self, stream: StreamConfig, dataset: Dataset) -> Sequence[Split]:
        """What the chat was before its migration as one split, the chat itself as up to ``max_parallel`` of equal
        numbers of messages; the last one is open for a tail. A plain tail begins after the newest message. By OFFSET
        it is one split, with an id that names the newest message."""
        asking_for.set(stream.name)
        if stream.traversal == "OFFSET":
            legs = await self._legs(stream, None)
            counts = [await count_in(self.account, leg, leg.after) for leg in legs]
            return [split_of(sum(counts), legs[-1].through)]
        *former, chat = await self.succession(stream)
        start, end = chat_filter(stream.where, stream.name).bounds
        splits: list[Split] = []
        if stream.mode != "tail":
            for old in former:
                low = await history.id_before(self.account, old, start) if start else 0
                top = (await history.top(self.account, old))[0]
                if low < top:
                    splits.append(Split(f"chat{old.marked_id}", _at(old, low), _at(old, top)))
        top, count = await history.top(self.account, chat)
        if stream.mode == "tail":
            return [Split("tail", _at(chat, top), None)]
        low, high = await self._range(chat, top, start, end)
        edges = [low, *await self._edges(chat, low, high, count, stream.max_parallel), high]
        for number, (lower, upper) in enumerate(itertools.pairwise(edges)):
            is_open = stream.mode == "snapshot_then_tail" and upper == high
            splits.append(Split(f"{number}", _at(chat, lower), None if is_open else _at(chat, upper)))
        return splits

    async def _range(self, chat: Chat, top: int, start: dt.datetime | None, end: dt.datetime | None) -> tuple[int, int]:
        """The ids (exclusive, inclusive) between which the messages of the dates are, up to `top`."""
        low = await history.id_before(self.account, chat, start) if start else 0
        high = min(top, await history.id_before(self.account, chat, _just_after(end))) if end else top
        return low, max(low, high)

    async def _legs(self, stream: StreamConfig, newest: int | None) -> list[Leg]:
        """What an OFFSET stream reads, one chat after the other; of its own chat up to message `newest`."""
        start, end = chat_filter(stream.where, stream.name).bounds
        chats = await self.succession(stream)
        legs = []
        for chat in chats:
            top = (await history.top(self.account, chat))[0] if newest is None or chat is not chats[-1] else newest
            legs.append(Leg(chat, *await self._range(chat, top, start, end)))
        return legs

    async def _edges(self, chat: Chat, low: int, high: int, count: int, most: int) -> list[int]:
        """Ids that part (low, high] into pieces of about equal numbers of messages, by asking for the rows there."""
        pieces = min(most, count // MIN_SPLIT_MESSAGES)
        found = [
            await history.id_at_row(self.account, chat, math.floor(count * (pieces - n) / pieces))
            for n in range(1, pieces)
        ]
        return sorted({i for i in found if low < i < high})

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> ChatReader | OffsetReader:
        """A reader of one split; its requests take turns with those of all other readers of the account."""
        downloads = Downloads(self.account, self._config) if Downloads.wanted(self._config) else None
        enrich = downloads.enrich if downloads else None
        if stream.traversal == "OFFSET":
            counting = OffsetReader(
                self.account,
                stream.name,
                await self._legs(stream, newest_of(split)),
                end_of(split),
                dataset.schema,
                bounds=chat_filter(stream.where, stream.name).bounds,
                enrich=enrich,
            )
            self._counting[stream.name, split.id] = counting
            return counting
        reader = self.open_reader(stream, split, dataset.schema, await self.succession(stream), enrich=enrich)
        self._readers[stream.name, split.id] = reader
        return reader

    def open_reader(
        self, stream: StreamConfig, split: Split, schema: pa.Schema, chats: Sequence[Chat], *, enrich: Enrich | None
    ) -> ChatReader:
        """A reader that updates are not told to; `enrich` downloads what is wanted beside the messages."""
        bounds = chat_filter(stream.where, stream.name).bounds
        window = self._config.edit_window
        return ChatReader(
            self.account,
            self.chats,
            stream.name,
            split,
            chats,
            schema,
            bounds=bounds,
            edit_window=window,
            enrich=enrich,
        )

    async def divide(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> Position | None:
        """Never: the account's requests take turns, so that a further reader would only wait with the others."""
        return None

    async def replay(self, stream: StreamConfig, dataset: Dataset, split_id: str, wanted: Between) -> Split:
        """Message ids or, with column ``date``, times (ISO 8601; without an offset UTC) of the chat itself."""
        if stream.traversal == "OFFSET":
            message = f"stream {stream.name!r}, replay: an OFFSET stream cannot read a range of messages"
            raise ConfigError(message, hint="use ID_RANGE")
        *_, chat = await self.succession(stream)
        top = (await history.top(self.account, chat))[0]
        first, last = (None if end is None else str(end) for end in (wanted.first, wanted.last))
        what = f"stream {stream.name!r}, replay"
        if wanted.column not in ("", "id", "date"):
            raise ConfigError(f"{what}: a chat has no range of {wanted.column!r}", hint="column id or date")
        try:
            if wanted.column == "date":
                low = 0 if first is None else await history.id_before(self.account, chat, _moment(first))
                high = top if last is None else await history.id_before(self.account, chat, _just_after(_moment(last)))
            else:
                low, high = 0 if first is None else int(first) - 1, top if last is None else int(last)
        except ValueError:
            raise ConfigError(f"{what}: {first} to {last} is not a range of {wanted.column or 'id'}") from None
        low = max(0, low)
        return Split(split_id, _at(chat, low), _at(chat, max(low, min(high, top))))

    async def remaining(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> int | None:
        """About how many messages are to come: the ids that are left, times how many of the chat's ids are taken."""
        if checkpoint.done:
            return 0
        if (counting := self._counting.get((stream.name, checkpoint.split.id))) is not None:
            return counting.left
        reader = self._readers.get((stream.name, checkpoint.split.id))
        if reader is None:
            return None
        place = place_of(checkpoint.position) or place_of(checkpoint.split.lower)
        upper = place_of(checkpoint.split.upper)
        if place is None or not reader.count:
            return None
        top = upper[1] if upper is not None else reader.top
        return max(0, round((top - place[1]) * min(1.0, reader.count / max(reader.top, top, 1))))

    async def succession(self, stream: StreamConfig) -> tuple[Chat, ...]:
        """The stream's chat with what it was before; see `Chats.succession`."""
        assert stream.chat is not None
        name = str(stream.chat)
        if name not in self._successions:
            self._successions[name] = await self.chats.succession(await self.chats.resolve(stream.chat))
        return self._successions[name]

    # --- updates: what is new is only a reason to look; edits and deletions are handed to the chat's open reader ---

    def _heard(self, update: Any) -> None:
        match update:
            case types.UpdateNewMessage() | types.UpdateNewChannelMessage():
                self._tell(marked_id(update.message.peer_id))
            case types.UpdateEditMessage() | types.UpdateEditChannelMessage():
                entities = getattr(update, "_entities", {})
                edited = {update.message.id: (update.message, entities)}
                self._tell(marked_id(update.message.peer_id), edited=edited)
            case types.UpdateDeleteChannelMessages():
                self._tell(marked_id(update), deleted=update.messages)
            case types.UpdateDeleteMessages():
                # without the chat: only readers that remember having read the id can tell that it is theirs
                for reader in list(self._readers.values()):
                    for chat_id in {c.marked_id for c in reader.succession if c.kind in ("group", "user")}:
                        self._tell(chat_id, deleted=[i for i in update.messages if reader.remembers(i)])

    def _tell(self, chat_id: int | None, *, edited: dict[int, Any] | None = None, deleted: Sequence[int] = ()) -> None:
        for (stream, _), reader in self._readers.items():
            if chat_id is not None and reader.follows(chat_id):
                news = reader.news.setdefault(chat_id, News())
                news.edited.update(edited or {})
                news.deleted.update(deleted)
                news.forget_oldest()
                self.on_news(stream)


def selected_fields(stream: StreamConfig) -> tuple[str, ...]:
    """The record's fields that the stream wants; the key is always there. ConfigError for an unknown name."""
    for option, wanted in (("columns", stream.columns or ()), ("exclude", stream.exclude)):
        for name in wanted:
            if name not in record.SCHEMA.names:
                raise ConfigError(
                    f"streams.{stream.name}.{option}: a message has no field {name!r}",
                    hint=f"its fields are {', '.join(record.SCHEMA.names)}",
                )
    chosen = stream.columns or record.SCHEMA.names
    return tuple(n for n in record.SCHEMA.names if n in record.KEY or (n in chosen and n not in stream.exclude))


def _at(chat: Chat, message_id: int) -> KeyPosition:
    return KeyPosition((chat.marked_id, message_id))


def _moment(text: str) -> dt.datetime:
    """ISO 8601 as a time; ValueError for other text. Without an offset it is UTC."""
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)


def _just_after(date: dt.datetime) -> dt.datetime:
    """Telegram's dates are whole seconds, and it asks for "sent before"."""
    return date.replace(microsecond=0) + dt.timedelta(seconds=1)
