"""What SQLite may do with a key column: compare it by a collation that only the application has, and hold values that
are apart in the table and the same in Kafka."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from adbc_driver_manager import Error

from producer.errors import PermanentError
from producer.sources.sql.adbc import Connection, tuples
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column

#: The collations that every SQLite has.
KNOWN = frozenset({"BINARY", "NOCASE", "RTRIM"})
#: The sort order of kinds of values: numbers, then texts, then blobs.
_RANGES = {"numbers": "{} < ''", "texts": "{0} >= '' AND {0} < x''", "blobs": "{} >= x''"}


def collation(connection: Connection, table: str, column: str) -> str:
    """By what the column is compared; '' for a collation that only the application has. No pragma tells, but a compound
    SELECT goes by its first column."""

    def kinds(*texts: str) -> str:
        values = "".join(f" UNION SELECT '{text}'" for text in texts)
        return f"(SELECT count(*) FROM (SELECT {quote(column)} FROM {quote(table)} WHERE 0{values}))"

    try:
        ((cases, blanks),) = tuples(connection.read(f"SELECT {kinds('a', 'A')}, {kinds('a', 'a ')}"))
    except Error:
        return ""
    return "NOCASE" if cases == 1 else "RTRIM" if blanks == 1 else "BINARY"


def unsorted(connection: Connection, table: str, columns: Sequence[str]) -> set[str]:
    """Those of the columns that only the application compares. One query where there are none."""
    every = f"SELECT * FROM {quote(table)} WHERE 0"
    try:
        connection.read(f"SELECT count(*) FROM ({every} UNION {every})")
    except Error:
        return {column for column in columns if not collation(connection, table, column)}
    return set()


def encoding(connection: Connection) -> str:
    """In which a text of the file is stored, as Python names it."""
    ((found,),) = tuples(connection.read("PRAGMA encoding"))
    return str(found).lower()


def refuse_mixed(connection: Connection, table: str, columns: Sequence[Column]) -> None:
    """PermanentError where one of the key's `columns` holds two kinds of values that may be the same key in Kafka: 1
    and '1', a moment as text and in seconds, a UUID as text and blob."""
    for column in columns:
        kinds = _alike(connection, table, column)
        if not kinds:
            continue
        name = quote(column.name)
        exist = ", ".join(f"EXISTS(SELECT 1 FROM {quote(table)} WHERE {_RANGES[kind].format(name)})" for kind in kinds)
        if all(tuples(connection.read(f"SELECT {exist}"))[0]):
            raise PermanentError(
                f"table {table!r}: key column {column.name!r} holds {kinds[0]} and {kinds[1]}, "
                "of which two may be the same key in Kafka",
                hint="read a view that makes them of one kind, or leaves one kind out",
            )


def _alike(connection: Connection, table: str, column: Column) -> tuple[str, ...]:
    """The kinds of values that become the same values; numbers and texts only where the column's affinity leaves them
    apart: without a declared type, and with ANY in a STRICT table."""
    if (column.field.metadata or {}).get(b"avro.logical") == b"uuid":
        return "texts", "blobs"
    if pa.types.is_timestamp(column.field.type):
        return "numbers", "texts"
    if column.sql_type == "ANY":
        strict = tuples(connection.read("SELECT strict FROM pragma_table_list WHERE name = ?1", (table,)))
        return ("numbers", "texts") if (1,) in strict else ()
    return ("numbers", "texts") if pa.types.is_string(column.field.type) and column.sql_type == "" else ()
