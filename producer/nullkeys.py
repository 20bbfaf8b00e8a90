"""The watch for rows with NULL in a column of the key or order.

No page has them, so each run and each poll asks for them. With `on_bad_record: fail` such a row stops the stream.
With `dead_letter` it goes to the dead letters once: the checkpoint's detail keeps a digest of each, beside what the
reader keeps. They are those of the last search, so a row that got a value is forgotten.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import NullKeyError
from producer.model import Json, Page, Position, RejectedRow, Split
from producer.protocols import NullKeySource

#: Rows whose digests are kept: at most 54 kB of a checkpoint.
MOST_ROWS = 5000
LETTERS_A_PAGE = 500
NAMED_ROWS = 5
#: Without an index a search reads the whole table. Of a followed stream's time it takes one part in so many.
SEARCH_SHARE = 20
#: A stream that never reaches the end of its table is searched after so many seconds all the same.
BUSY_SEARCH_S = 60.0
_DETAIL = "null_keys"
_DIGEST_BYTES = 8


class NullKeyWatch:
    """Looks for such rows when a split has reached the end of its rows; `ends`: after its last page, before it is done.

    `restore` first, then `after` each page.
    """

    def __init__(self, source: NullKeySource, stream: StreamConfig, *, ends: bool) -> None:
        self._source = source
        self._stream = stream
        self._ends = ends
        self._known: frozenset[bytes] = frozenset()
        self._next = 0.0  # on the monotonic clock
        self._latest = time.monotonic() + BUSY_SEARCH_S
        self._wrote = False  # whether the checkpoint may have digests
        self._readers: Mapping[str, Json] | None = None

    def restore(self, detail: Mapping[str, Json] | None) -> Mapping[str, Json] | None:
        """Begins with what a checkpoint knows; what is left of its detail is the reader's."""
        self._known = known_rows(detail)
        self._wrote = bool(self._known)
        self._readers = reader_detail(detail)
        return self._readers

    async def after(self, page: Page) -> Page:
        """The page, with the rows that were found. NullKeyError where the stream is to stop at such rows."""
        if self._ends and page.last and page.rows:
            page = replace(page, last=False)  # these rows first: the search may stop the stream
        elif self._is_due(page) and (found := await self._search()):
            page = replace(page, rejected=(*page.rejected, *found), last=False)
        return replace(page, detail=self._detail(page.detail))

    def _is_due(self, page: Page) -> bool:
        now, at_end = time.monotonic(), page.last and not page.rows
        return now >= self._latest or (at_end and (self._ends or now >= self._next))

    async def _search(self) -> tuple[RejectedRow, ...]:
        began = time.monotonic()
        found = await self._find()
        now = time.monotonic()
        rest_s = (now - began) * SEARCH_SHARE
        self._next, self._latest = now + rest_s, now + max(rest_s, BUSY_SEARCH_S)
        return found

    async def _find(self) -> tuple[RejectedRow, ...]:
        if self._stream.on_bad_record == "fail":
            await refuse_null_keys(self._source, self._stream)
            return ()
        rows = await self._source.null_rows(self._stream, self._known, limit=LETTERS_A_PAGE, most=MOST_ROWS)
        self._known = (self._known & rows.digests) | {digest for digest, _ in rows.new}
        return tuple(row for _, row in rows.new)

    def _detail(self, detail: Mapping[str, Json] | None) -> Mapping[str, Json] | None:
        if detail is not None:
            self._readers = detail
        if not self._known and not self._wrote:
            return detail
        self._wrote = True  # from here on it is written also when nothing is known: None would leave the old one there
        known = {_DETAIL: base64.b64encode(b"".join(sorted(self._known))).decode()} if self._known else {}
        return {**(self._readers or {}), **known}


class NoRows:
    """A reader without rows, for the search at the end of a snapshot. See `producer.protocols.PageReader`."""

    def __init__(self, schema: pa.Schema, split: Split) -> None:
        self._schema = schema
        self._split = split

    async def fetch(self, position: Position | None, limit: int) -> Page:
        after = position if position is not None else self._split.lower
        return Page(pa.RecordBatch.from_pylist([], self._schema), after, last=True)

    async def close(self) -> None:
        """It holds nothing."""


async def refuse_null_keys(source: NullKeySource, stream: StreamConfig) -> None:
    """NullKeyError where rows have NULL in a column of the key or order."""
    found = await source.null_keys(stream, NAMED_ROWS)
    if found.rows:
        raise NullKeyError(found.message(stream.name), field=next(iter(found.columns)), hint=found.hint)


def known_rows(detail: Mapping[str, Json] | None) -> frozenset[bytes]:
    """The digests in a checkpoint's detail."""
    joined = base64.b64decode((detail or {}).get(_DETAIL, ""))
    return frozenset(joined[at : at + _DIGEST_BYTES] for at in range(0, len(joined), _DIGEST_BYTES))


def reader_detail(detail: Mapping[str, Json] | None) -> Mapping[str, Json] | None:
    """A checkpoint's detail without these; None where nothing else is in it."""
    return {name: value for name, value in (detail or {}).items() if name != _DETAIL} or None


def watch_detail(detail: Mapping[str, Json] | None) -> Mapping[str, Json] | None:
    """These alone, for another split that takes over the watch."""
    return {_DETAIL: detail[_DETAIL]} if detail and _DETAIL in detail else None
