"""Owns the reading of a table's keys alone, and of the count and checksum of a range of them."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from producer.model import KeyDigest, KeyPage, KeyPosition, Position
from producer.sources.sql import keyset, ties
from producer.sources.sql.keyset import Selection
from producer.sources.sql.table import Column, Database
from producer.traversal import key_values

_CHECKSUM = "checksum of the key"  # no page has it


class SqlKeys:
    """See `producer.protocols.KeyReader`. `selection` has the columns of the key, and what its order needs beside."""

    def __init__(self, selection: Selection, database: Database, *, salvage: bool) -> None:
        self._database = database
        self._session = database.session()
        self._salvage = salvage  # a key that cannot be read is not on the topic either
        self._checksum = database.checksum(selection.order_columns)
        self._selection = self._summed = selection
        if self._checksum is not None:
            field = pa.field(_CHECKSUM, pa.int64(), nullable=False)
            summed = Column(_CHECKSUM, field, self._checksum, "bigint")
            self._summed = replace(selection, columns=(*selection.columns, summed))

    async def digest(self, lower: Position | None, upper: Position | None) -> KeyDigest | None:
        if self._checksum is None:
            return None
        selection, database = self._selection, self._database
        width = len(selection.order)
        query = keyset.digest_query(
            selection,
            self._checksum,
            key_values(lower, width),
            key_values(upper, width),
            mark=database.mark,
            row_values=database.row_values,
        )
        ((count, total),) = await self._session.keys(query)
        return int(str(count)), int(str(total))

    async def fetch(self, lower: Position | None, upper: Position | None, limit: int) -> KeyPage:
        selection, database = self._summed, self._database
        width = len(selection.order)
        query = keyset.key_query(
            selection,
            key_values(lower, width),
            key_values(upper, width),
            limit,
            mark=database.mark,
            row_values=database.row_values,
        )
        rows = await self._session.fetch(replace(query, salvage=self._salvage))
        batch, count = rows.batch, rows.count
        digest = None
        if self._checksum is not None:
            digest = (batch.num_rows, sum(batch.column(_CHECKSUM).to_pylist()))
            batch = batch.drop_columns([_CHECKSUM])
        position = KeyPosition(rows.key_at(count - 1)) if count else lower
        last = count < limit and not rows.cut
        if not last and not selection.proven and not ties.seen_in_arrow(selection):
            # A key that the page's edge leaves out would be taken for deleted.
            await ties.refuse(self._session, database, selection, key=key_values(position, width))
        return KeyPage(batch, position, last, digest)

    async def aclose(self) -> None:
        await self._session.close()
