"""Owns reading rows of a table that may have changed since it was described: none leaves with the columns of before."""

from __future__ import annotations

from dataclasses import replace

from producer.config import StreamConfig
from producer.errors import ConfigError, SchemaChangedError
from producer.sources.sql.table import Query, Rows, Session, Table


async def read(session: Session, query: Query, table: Table, stream: StreamConfig) -> Rows:
    """The rows of a query of `table`; SchemaChangedError where that is no longer as it was described."""
    salvage = stream.on_bad_record == "dead_letter"
    changed = f"stream {stream.name!r}: table {'.'.join(table.path)!r} has changed"
    try:
        rows = await session.fetch(replace(query, salvage=salvage, watched=table))
    except ConfigError as error:  # what the query names was there when it was made
        raise SchemaChangedError(f"{changed}: {error.message}", hint=error.hint) from error
    if rows.shape != table.shape:
        raise SchemaChangedError(changed)
    return rows
