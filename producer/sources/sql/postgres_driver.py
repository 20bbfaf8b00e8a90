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
_PROBE = "SELECT pg_catalog.current_setting('transaction_isolation'), " + ", ".join(
    f"NULL::pg_catalog.{name}" for name in _KNOWN
)
#: Whatever default the role has: a serializable transaction may wait, or fail on a replica.
_ISOLATION = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"


class Driver:
    """Makes connections of one database object, which costs the driver a look at the server's whole type catalog
    (megabytes and tens of milliseconds); a connection of it costs almost nothing. Safe to use from any thread."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._database: AdbcDatabase | None = None
        self._begin = ""

    def connect(self) -> Connection:
        with self._lock:
            if self._database is None:
                return self._open(self._uri) or self._open(_without_quotes(self._uri)) or _refuse()
        return Connection(self._database, shared=True)

    def begin(self, connection: Connection) -> None:
        """Sets what a transaction's first statement must set."""
        if self._begin:
            connection.read(self._begin)

    def _open(self, uri: str) -> Connection | None:
        """The first connection of a new database object; None where the driver does not recognise the types."""
        database = adbc_driver_postgresql.connect(uri)
        connection = None
        try:
            connection = Connection(database, shared=True)
            found = connection.read(_PROBE, (), {"adbc.postgresql.use_copy": "false"})
            connection.rollback()
            if found.schema.types[1:] == list(_KNOWN.values()):
                self._begin = "" if found.column(0)[0].as_py() == "read committed" else _ISOLATION
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
