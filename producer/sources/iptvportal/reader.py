"""Reads the pages of one split of an IPTVPortal table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import EncodeError, SchemaChangedError, SchemaIncompatibleError
from producer.model import Dataset, KeyPosition, OffsetPosition, Page, Position, RejectedRow, Split
from producer.sources.iptvportal.client import AsyncIPTVPortalClient, Call, Row
from producer.sources.iptvportal.columns import (
    ID,
    Column,
    column_of,
    to_arrow,
    to_arrow_without_bad,
    transposed,
    widened,
)
from producer.sources.iptvportal.query import all_of

Json = Any
STAR = "field_"  # names of columns that nobody has named


@dataclass(slots=True)
class Inferred:
    """What the source has learned of tables that nobody has described: columns that had to become wider, by table and
    name, and the first page that the columns were inferred from, with the request that asked for it."""

    columns: dict[tuple[str, str], Column] = field(default_factory=dict)
    first_page: tuple[Mapping[str, Json], list[Row]] | None = None


class IptvPortalReader:
    """Pages of one split, one request each. Rows are decoded and put into Arrow in a worker thread."""

    def __init__(
        self, client: AsyncIPTVPortalClient, stream: StreamConfig, dataset: Dataset, split: Split, learned: Inferred
    ) -> None:
        self._client = client
        self._split = split
        self._by_offset = stream.traversal == "OFFSET"
        self._salvages = stream.on_bad_record == "dead_letter"
        self._table = dataset.name
        self._where = dataset.identity["where"]
        self._order_by = [order_json(name, way) for name, way in dataset.identity["order"]]
        self._columns = tuple(column_of(field) for field in dataset.schema)
        self._learned = learned
        self._are_inferred = frozenset(name for name, kind in dataset.identity["columns"] if not kind)
        names = [c.name for c in self._columns]
        star_width = dataset.identity["star_width"]
        if star_width is None:
            self._data, self._width, self._places = names, len(names), list(range(len(names)))
        else:
            # The id stands first and "*" after it, so that its place does not depend on the table's width.
            leading = [name for name in names if name == ID]
            self._data, self._width = [*leading, "*"], len(leading) + star_width
            self._places = [0 if n == ID else len(leading) + int(n.removeprefix(STAR)) for n in names]
        self._first_page = self._taken(learned, stream.page_size)

    def _taken(self, learned: Inferred, page_size: int) -> list[Row] | None:
        """The table's first page, where it has been read already and is what this split begins with."""
        if learned.first_page is None:
            return None
        asked, rows = learned.first_page
        mine = {**self._params(None), "limit": page_size}
        if any(asked.get(name) != mine.get(name) for name in ("data", "from", "order_by", "limit")):
            return None
        if asked.get("where") != self._where:  # without the split's own bounds, which are applied below
            return None
        lower, upper = self._split.lower, self._split.upper
        if self._by_offset:
            found = rows if lower is None else None
        else:
            place = self._places[[c.name for c in self._columns].index(ID)]
            if not rows or any(type(row[place]) is not int for row in rows):
                return None
            if isinstance(lower, KeyPosition) and rows[0][place] <= lower.values[0]:
                return None
            found = [r for r in rows if not isinstance(upper, KeyPosition) or r[place] <= upper.values[0]] or None
        if found is not None:
            learned.first_page = None
        return found

    def _params(self, position: Position | None) -> dict[str, Json]:
        """The request for the rows after `position`, but for their number."""
        ordered = {"order_by": self._order_by} if self._order_by else {}
        params: dict[str, Json] = {"data": self._data, "from": self._table, **ordered}
        if not self._by_offset:
            return params | where_param(all_of(self._where, *range_conditions(position, self._split.upper)))
        read = position.rows if isinstance(position, OffsetPosition) else 0
        return params | {"offset": read, **where_param(self._where)}

    async def fetch(self, position: Position | None, limit: int) -> Page:
        first_page, self._first_page = (None if position is not None else self._first_page), None
        position = position or self._split.lower
        upper = self._split.upper
        if isinstance(upper, OffsetPosition):
            read = position.rows if isinstance(position, OffsetPosition) else 0
            limit = min(limit, upper.rows - read)
        if first_page is not None:
            return await asyncio.to_thread(self._page, first_page[: max(limit, 0)], position, time.time())
        calls: list[Call] = [("select", {**self._params(position), "limit": max(limit, 0)})]
        raw = await self._client.fetch_raw(calls)
        return await asyncio.to_thread(self._decoded, raw, calls, position, time.time())

    async def close(self) -> None:
        """Nothing: the connections are the client's."""

    def _decoded(
        self, raw: tuple[Sequence[int], bytes], calls: Sequence[Call], position: Position | None, answered: float
    ) -> Page:
        return self._page(self._client.results(raw, calls)[0], position, answered)

    def _page(self, rows: Json, position: Position | None, answered: float) -> Page:
        if not isinstance(rows, list):
            raise SchemaIncompatibleError(f"iptvportal: {self._table}: select answered with a {type(rows).__name__}")
        values = transposed(self._table, rows, self._width)
        picked = [values[i] for i in self._places]
        rejected: tuple[RejectedRow, ...] = ()
        if self._salvages:
            batch, rejected = to_arrow_without_bad(self._table, self._columns, picked)
        else:
            batch = self._arrow(picked)
        upper = self._split.upper
        # The API may answer with fewer rows than the limit: only an empty page, or the split's last row, is the end.
        if not rows:
            return Page(batch, position, last=True, source_time=answered)
        after: Position
        if self._by_offset:
            after = OffsetPosition((position.rows if isinstance(position, OffsetPosition) else 0) + len(rows))
            last = isinstance(upper, OffsetPosition) and after.rows >= upper.rows
        else:
            place = [c.name for c in self._columns].index(ID)
            ids = to_arrow(self._table, [self._columns[place]], [picked[place]])  # those of rejected rows too
            after = KeyPosition((self._last_id(ids, position),))
            last = after == upper
        return Page(batch, after, last=last, source_time=answered, rejected=rejected)

    def _arrow(self, values: Sequence[Sequence[Json]]) -> pa.RecordBatch:
        """The values as their columns' types. SchemaChangedError where the type of one was inferred from earlier rows
        and is too narrow: the source knows the wider one from then on."""
        try:
            return to_arrow(self._table, self._columns, values)
        except EncodeError as error:
            if error.field not in self._are_inferred or error.field == ID:
                raise
            for known, column_values in zip(self._columns, values, strict=True):
                if known.name in self._are_inferred:
                    self._learned.columns[self._table, known.name] = widened(known, column_values)
            raise SchemaChangedError(
                f"{error.message}, as those before were", hint="give the column its type in a schema file"
            ) from None

    def _last_id(self, batch: pa.RecordBatch, position: Position | None) -> int:
        """The page's highest id, once it is sure that the page is in order and lies after `position`."""
        ids = batch.column(batch.schema.get_field_index(ID))
        first = position.values[0] if isinstance(position, KeyPosition) else None
        numbers = ids.to_numpy()
        if (numbers[1:] > numbers[:-1]).all() and (first is None or numbers[0] > first):
            return int(numbers[-1])
        raise SchemaIncompatibleError(
            f"iptvportal: {self._table}: the answer is not in the order of id, or repeats one",
            hint="is id the table's primary key? traversal: OFFSET reads any table",
        )


def range_conditions(position: Position | None, upper: Position | None) -> list[Json]:
    conditions = [("gt", position), ("lte", upper)]
    return [{op: [ID, p.values[0]]} for op, p in conditions if isinstance(p, KeyPosition)]


def order_json(name: str, way: str) -> Json:
    return name if way == "ASC" else [name, way]


def where_param(where: Json) -> dict[str, Json]:
    return {} if where is None else {"where": where}
