"""Connections to PostgreSQL by the ADBC driver, whatever settings the role has.

The driver reads the server's type catalog when it is opened, by the names of the types' receive functions. It takes
values of a type that it does not recognise for bytes, and where all identifiers are quoted it recognises none.
"""

from __future__ import annotations

import threading
from urllib.parse import quote, unquote

import adbc_driver_postgresql
import pyarrow as pa
from adbc_driver_manager import AdbcDatabase

from producer.errors import ConfigError
from producer.sources.sql.adbc import Connection

#: What the driver must recognise, and of what type it then is in Arrow.
_KNOWN = {"bool": pa.bool_(), "int8": pa.int64(), "float8": pa.float64(), "text": pa.string(), "date": pa.date32()}
#: What a page's first statement cannot set for itself: the setting, its value, and the statement that sets it. A
#: serializable transaction may wait, or fail on a replica; without row security a table with policies is refused.
_BEFORE = (
    ("transaction_isolation", "read committed", "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"),
    ("row_security", "on", "SET LOCAL row_security = on"),
)
_PROBE = "SELECT " + ", ".join(
    [
        *(f"NULL::pg_catalog.{name}" for name in _KNOWN),
        *(f"pg_catalog.current_setting('{name}')" for name, _, _ in _BEFORE),
    ]
)


class Driver:
    """Makes connections of one database object, which costs the driver a look at the server's whole type catalog
    (megabytes and tens of milliseconds); a connection of it costs almost nothing. Safe to use from any thread."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._database: AdbcDatabase | None = None
        self._before: tuple[str, ...] = ()

    def connect(self) -> Connection:
        with self._lock:
            if self._database is None:
                return self._open(self._uri) or self._open(_without_quotes(self._uri)) or _refuse()
        return Connection(self._database, shared=True)

    def begin(self, connection: Connection) -> None:
        """Sets what only a transaction's first statements can set, where the role's defaults are others."""
        for statement in self._before:
            connection.read(statement)

    def _open(self, uri: str) -> Connection | None:
        """The first connection of a new database object; None where the driver does not recognise the types."""
        database = adbc_driver_postgresql.connect(uri)
        connection = None
        try:
            connection = Connection(database, shared=True)
            found = connection.read(_PROBE, (), {"adbc.postgresql.use_copy": "false"})
            connection.rollback()
            if found.schema.types[: len(_KNOWN)] == list(_KNOWN.values()):
                values = [column[0].as_py() for column in found.columns[len(_KNOWN) :]]
                self._before = tuple(
                    statement for (_, wanted, statement), value in zip(_BEFORE, values, strict=True) if value != wanted
                )
                self._database = database
                return connection
        finally:
            if self._database is None:
                if connection is not None:
                    connection.close()
                database.close()
        return None


def _without_quotes(uri: str) -> str:
    """`uri` with a setting for the whole session: the driver's own look at the catalog cannot be preceded by one."""
    address, _, query = uri.partition("?")
    items = [item for item in query.split("&") if item]
    options = [unquote(item.partition("=")[2]) for item in items if item.startswith("options=")]
    options.append("-c quote_all_identifiers=off")
    others = [item for item in items if not item.startswith("options=")]
    return f"{address}?{'&'.join([*others, 'options=' + quote(' '.join(options))])}"


def _refuse() -> Connection:
    raise ConfigError(
        "PostgreSQL's types cannot be read with the settings of the source's role",
        hint="let its search_path have no functions named like PostgreSQL's own, and quote_all_identifiers be off",
    )
