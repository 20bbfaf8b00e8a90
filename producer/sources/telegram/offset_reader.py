"""Reads a chat by OFFSET: by how many messages have been read, with ``add_offset``.

Telegram counts from the newest message down, and new ones would move every count. So the count begins below the message
that was the newest when the stream was planned: the page after N messages is asked for by how many are still to come.
Each answer has to reach down to a message that was read before, which proves that nothing lies between; where it does
not, the messages still to come are counted anew. A deletion therefore costs a request and never a message, as long as
the last message that was read is known. It stands in the checkpoint's detail; a position that somebody set has none,
and is counted among the messages that are there now.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from producer.errors import PermanentError, RateLimitedError, SourceUnavailableError, TransientError
from producer.model import Json, OffsetPosition, Page, Position, Split
from producer.sources.telegram import history, record
from producer.sources.telegram.account import Account, asking_for
from producer.sources.telegram.chats import Chat
from producer.sources.telegram.reader import GATHER_S, HOLD_S, REQUEST, Enrich
from producer.traversal import offset_rows

_PLANNED = re.compile(r"(?:.*\.)?(\d+)-upto-(\d+)")
MISSES = 3  #: how often in a row an answer that does not reach down to what was read is asked for anew


@dataclass(frozen=True, slots=True)
class Leg:
    """The messages of one chat with ids in (`after`, `through`]."""

    chat: Chat
    after: int
    through: int


async def count_in(account: Account, leg: Leg, after_id: int) -> int:
    """How many messages of the leg are newer than `after_id`."""
    newer = await history.count_after(account, leg.chat, after_id)
    return max(0, newer - await history.count_after(account, leg.chat, leg.through))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a fetch stands: `rows` read in all, `last` the id of the last one in this leg (its ``after``: none yet).

    `left` is how many of the leg are still to come as of the last count, None before the first; `floor` the highest id
    that an answer has to reach down to.
    """

    leg: int
    last: int
    rows: int
    floor: int
    left: int | None = None
    misses: int = 0


class OffsetReader:
    """A `PageReader`, and a `RememberingReader`: positions are counts over all legs."""

    def __init__(
        self,
        account: Account,
        stream: str,
        legs: Sequence[Leg],
        upper: int | None,
        schema: pa.Schema,
        *,
        bounds: tuple[dt.datetime | None, dt.datetime | None] = (None, None),
        enrich: Enrich | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self._stream = stream
        self._legs = legs
        self._upper = upper
        self._schema = schema
        self._bounds = bounds
        self._enrich = enrich
        self._clock = clock
        self._reached: _Place | None = None
        self._committed: Mapping[str, Json] = {}

    @property
    def left(self) -> int | None:
        """How many messages are still to come in the chat that is being read, as far as that is known."""
        return self._reached.left if self._reached is not None else None

    def restore(self, detail: Mapping[str, Json] | None) -> None:
        """See `RememberingReader`."""
        self._committed = detail or {}

    async def close(self) -> None:
        """Nothing to let go: the connection is the account's."""

    async def fetch(self, position: Position | None, limit: int) -> Page:
        """See `PageReader.fetch`. Where no turn comes within `HOLD_S`, the page is empty and not the last."""
        asking_for.set(self._stream)
        rows = _rows_of(position)
        fetch = _Fetch(self, await self._place(rows), limit)
        await fetch.gather()
        self._reached = fetch.place
        detail = {
            "rows": fetch.place.rows,
            "chat": self._legs[fetch.place.leg].chat.marked_id,
            "last": fetch.place.last,
        }
        batch = fetch.rows.batch
        return Page(
            await asyncio.to_thread(batch, self._schema) if len(fetch.rows) else record.empty_batch(self._schema),
            OffsetPosition(fetch.place.rows) if position is not None or fetch.place.rows else None,
            last=fetch.ended,
            source_time=fetch.answered_at,
            detail=detail if fetch.place.rows else None,
        )

    async def _place(self, rows: int) -> _Place:
        """The place after so many rows: known from this reader or the checkpoint, else counted."""
        if self._reached is not None and self._reached.rows == rows:
            return replace(self._reached, misses=0)
        if not rows:
            return await self._beginning(0, 0)
        if self._committed.get("rows") == rows:
            number = next(
                (n for n, leg in enumerate(self._legs) if leg.chat.marked_id == self._committed["chat"]), None
            )
            if number is None:
                raise PermanentError(
                    f"the checkpoint is in chat {self._committed['chat']}, which is not that of the stream",
                    hint="`producer checkpoint reset` to begin anew",
                )
            last = int(self._committed["last"])
            return _Place(number, last, rows, floor=last)
        return await self._counted(rows)

    async def _beginning(self, number: int, rows: int) -> _Place:
        leg = self._legs[number]
        return _Place(number, leg.after, rows, floor=await self._first_after(leg, leg.after))

    async def _first_after(self, leg: Leg, last: int) -> int:
        """The first id after `last`; `last` where there is none."""
        answer = history.read(await self._ask(leg, history.forward(leg.chat, last, 1)), after_id=last)
        return max(last, answer.highest)

    async def _counted(self, rows: int) -> _Place:
        """The place of a count alone, among the messages that are there now."""
        before = 0
        for number, leg in enumerate(self._legs):
            there = await count_in(self._account, leg, leg.after)
            if rows - before < there or number == len(self._legs) - 1:
                break
            before += there
        left = max(0, there - (rows - before))
        if rows == before:
            return await self._beginning(number, rows)
        answer = history.read(await self._ask(leg, history.below(leg.chat, leg.through, skip=left, limit=1)))
        last = max(leg.after, answer.highest)
        return _Place(number, last, rows, floor=last, left=left)

    async def _ask(self, leg: Leg, request: Any) -> Any:
        return await self._account.ask(request, f"chat {leg.chat.title!r}")


class _Fetch:
    """One fetch: its place, and what it has gathered."""

    def __init__(self, reader: OffsetReader, place: _Place, limit: int) -> None:
        self._reader = reader
        self._start = place
        self._limit = limit
        self.place = place
        self.rows = record.Rows(reader._account.me.id)
        self.ended = False
        self.answered_at: float | None = None

    @property
    def _moved(self) -> bool:
        return self.place.rows != self._start.rows or self.place.leg != self._start.leg

    async def gather(self) -> None:
        """Reads until the page is full, the turn is far, or the end."""
        reader = self._reader
        deadline = reader._clock() + GATHER_S
        try:
            while not self.ended and len(self.rows) < self._limit:
                left_s = min(HOLD_S, deadline - reader._clock()) if self._moved else HOLD_S
                if left_s <= 0 or await reader._account.limiter.acquire(REQUEST, at_most_s=left_s) > 0:
                    return
                await self._step()
        except RateLimitedError:
            pass  # the limiter knows; the next fetch waits for its turn
        except TransientError:
            if not self._moved:
                raise
            # what is there goes out first: the next fetch meets the failure again, or does not

    async def _step(self) -> None:
        place, reader = self.place, self._reader
        leg = reader._legs[place.leg]
        most = self._limit - len(self.rows)
        if reader._upper is not None:
            most = min(most, reader._upper - place.rows)
            if most <= 0:
                self.ended = True
                return
        if not place.left:
            await self._count_left(leg)
            return
        size = min(history.MESSAGES_PER_REQUEST - 1, most, place.left)
        skip = place.left - size
        raw = await reader._account.call(
            history.below(leg.chat, leg.through, skip=skip, limit=size + 1), f"chat {leg.chat.title!r}"
        )
        self.answered_at = time.time()
        ids = sorted(m.id for m in raw.messages)
        if not ids or ids[0] > place.floor:
            await self._miss(leg, skip)
            return
        unread = [i for i in ids if place.last < i <= leg.through]
        taken = unread[:size]
        await self._add(leg, history.read(raw), frozenset(taken))
        last = taken[-1] if taken else place.last
        floor = last if taken else place.floor
        self.place = _Place(place.leg, last, place.rows + len(taken), floor, skip + len(unread) - len(taken))

    async def _count_left(self, leg: Leg) -> None:
        """Counts what is still to come. Nothing: the leg is over."""
        left = await count_in(self._reader._account, leg, self.place.last)
        if left:
            self.place = replace(self.place, left=left)
        elif self.place.leg + 1 < len(self._reader._legs):
            self.place = await self._reader._beginning(self.place.leg + 1, self.place.rows)
        else:
            self.ended = True

    async def _miss(self, leg: Leg, skip: int) -> None:
        """The answer does not reach down to what was read: that was deleted, the count is wrong, or Telegram does not
        go so deep. The next answer has to reach down to the first message that was not read."""
        misses, last = self.place.misses + 1, self.place.last
        if misses > MISSES:
            raise SourceUnavailableError(
                f"chat {leg.chat.title!r}: with add_offset {skip} Telegram does not answer with the messages that "
                f"follow message {last}",
                hint="use traversal: ID_RANGE for this chat",
            )
        floor = await self._reader._first_after(leg, last)
        self.place = replace(self.place, left=None, floor=floor, misses=misses)

    async def _add(self, leg: Leg, answer: history.Answer, wanted: frozenset[int]) -> None:
        start, end = self._reader._bounds
        messages = [
            m
            for m in answer.messages
            if m.id in wanted and (start is None or m.date >= start) and (end is None or m.date <= end)
        ]
        before = len(self.rows)
        self.rows.extend(leg.chat, messages, answer.entities)
        if self._reader._enrich is not None and messages:
            try:
                await self._reader._enrich(self.rows, leg.chat, messages, answer.entities)
            except BaseException:
                self.rows.cut(before)  # the place is before them: they are read again
                raise


def split_of(rows: int, newest: int) -> Split:
    """The one split of an OFFSET stream. Its id names the plan: so many messages up to that one."""
    return Split(f"{rows}-upto-{newest}", None, OffsetPosition(rows))


def newest_of(split: Split) -> int | None:
    """The newest message of the plan that made the split; None for a split that no plan made."""
    match = _PLANNED.fullmatch(split.id)
    return int(match[2]) if match else None


def end_of(split: Split) -> int | None:
    """The count at which the split ends; None where it ends with the plan's newest message, as a planned one does."""
    match, rows = _PLANNED.fullmatch(split.id), offset_rows(split.upper) if split.upper is not None else None
    return None if match is not None and int(match[1]) == rows else rows


def _rows_of(position: Position | None) -> int:
    match position:
        case None:
            return 0
        case OffsetPosition(rows):
            return rows
    raise PermanentError("the checkpoint is not one of an OFFSET stream", hint="`producer checkpoint reset`")
