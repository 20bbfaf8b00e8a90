"""Owns the choice of a dialect by the URL's scheme; each is imported only when it is chosen.

Another database joins by an entry here: a module with a class that does what `producer.sources.sql.table.Database` says
(``examples/duckdb`` has one, in a file of its own).
"""

from __future__ import annotations

import importlib
from concurrent.futures import Executor

from producer.errors import ConfigError
from producer.sources.sql.table import Database, Options
from producer.urls import parse

#: scheme -> (module, class, extra that installs its driver); called with `Options` and the source's thread pool
DIALECTS: dict[str, tuple[str, str, str]] = {
    "postgresql": ("producer.sources.sql.postgres", "PostgresDatabase", "postgres"),
    "postgres": ("producer.sources.sql.postgres", "PostgresDatabase", "postgres"),
    "sqlite": ("producer.sources.sql.sqlite", "SqliteDatabase", "sqlite"),
    "mysql": ("producer.sources.sql.mysql", "MysqlDatabase", "mysql"),
    "mariadb": ("producer.sources.sql.mysql", "MysqlDatabase", "mysql"),
}


def open_database(options: Options, executor: Executor) -> Database:
    """The dialect for the URL, not connected yet. ConfigError for one without a known scheme or a driver for it."""
    scheme, separator, _ = options.url.partition("://")
    name = scheme.partition("+")[0].lower()
    if not separator or not name:
        raise ConfigError("the source's url has no scheme", hint="such as postgresql://user@host/database")
    if name not in DIALECTS:
        what = repr(name) if name.isalnum() else "its scheme"  # a part of a password may be in front of ://
        raise ConfigError(f"the source's url: {what} is no known database", hint="known: " + ", ".join(DIALECTS))
    if name in ("mysql", "mariadb"):
        parse(options.url, "the source's url", example=f"{name}://user:password@host:3306/database")
    module, factory, extra = DIALECTS[name]
    try:
        database: Database = getattr(importlib.import_module(module), factory)(options, executor)
    except ImportError as error:
        hint = f"install it with the extra {extra!r}"
        raise ConfigError(f"the driver of {name} is not installed: {error}", hint=hint) from None
    return database
