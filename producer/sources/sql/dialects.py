"""Owns the choice of a dialect by the URL's scheme; each is imported only when it is chosen."""

from __future__ import annotations

from concurrent.futures import Executor

from producer.errors import ConfigError
from producer.sources.sql.table import Database


def open_database(url: str, *, statement_timeout_s: float, connect_timeout_s: float, executor: Executor) -> Database:
    """The dialect for `url`, not connected yet. ConfigError for a URL without a known scheme."""
    scheme, separator, _ = url.partition("://")
    name = scheme.partition("+")[0].lower()
    if not separator or not name:
        raise ConfigError("the source's url has no scheme", hint="such as postgresql://user@host/database")
    if name in ("postgresql", "postgres"):
        from producer.sources.sql.postgres import PostgresDatabase, PostgresOptions

        return PostgresDatabase(PostgresOptions(url, statement_timeout_s, connect_timeout_s), executor)
    if name == "sqlite":
        from producer.sources.sql.sqlite import SqliteDatabase

        return SqliteDatabase(url, statement_timeout_s, executor)
    raise ConfigError(f"sources of {name!r} are not known", hint="postgresql, sqlite, mysql or mariadb")
