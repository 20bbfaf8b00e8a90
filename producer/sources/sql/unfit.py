"""Looks for rows whose keys cannot be used, before the first record is sent."""

from __future__ import annotations

import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import ConfigError
from producer.sources.sql import keyset
from producer.sources.sql.keyset import Selection
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column, Database, Session

#: Behind the key's first column no index finds such rows: larger tables are not read whole for them. A stream still
#: stops at one, and names it.
_SCANNED_ROWS = 5_000_000


async def refuse_unfit_keys(
    session: Session, database: Database, selection: Selection, stream: StreamConfig, rows: int | None
) -> None:
    """ConfigError where a key has a value that the stream would stop at, or that reading could not continue after.
    `rows` is about how many the table has."""
    # A stream that follows the table would wait for keys above such a one, an infinite time say.
    may_reject = stream.on_bad_record == "dead_letter" and stream.mode == "snapshot"
    is_small = rows is not None and rows <= _SCANNED_ROWS
    for place, column in enumerate(selection.order_columns):
        unfit = column.unfit
        if unfit is None or (unfit.rejected and (may_reject or (place and not is_small))):
            continue
        name = f"t.{quote(column.name, database.mark)}"
        shown = Column("value", pa.field("value", pa.string()), f"{name}::text", "text", wire="text")
        found = await session.keys(keyset.rows_query(selection, (shown,), [unfit.condition], " LIMIT 1"))
        if found:
            remedy = "choose another key, or leave such rows out by where"
            dead = ", or set on_bad_record: dead_letter" if unfit.rejected and stream.mode == "snapshot" else ""
            raise ConfigError(
                f"table {'.'.join(selection.table.path)!r}: key column {column.name!r} has the value"
                f" {found[0][0]!r}, which {unfit.reason}",
                hint=remedy + dead,
            )
