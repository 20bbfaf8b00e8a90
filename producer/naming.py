"""Owns the names of datasets in lineage, as OpenLineage's naming specification has them: a namespace and a name in it.

Others tell of the same table or topic by the same two texts, and so the graph has it once. Neither holds a user, a
password, or a URL's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from pydantic import SecretStr

from producer.config import StreamConfig
from producer.errors import ConfigError
from producer.sources.sql.names import split_name

#: URL scheme -> that of the namespace, the port where the URL has none
_SERVERS = {
    "postgresql": ("postgres", 5432),
    "postgres": ("postgres", 5432),
    "mysql": ("mysql", 3306),
    "mariadb": ("mariadb", 3306),
}
_KAFKA_PORT = 9092


def topic_dataset(bootstrap_servers: str, topic: str) -> tuple[str, str]:
    """By the first of the servers."""
    server = bootstrap_servers.split(",")[0].strip()
    return f"kafka://{server}" if server.rpartition("]")[2].count(":") else f"kafka://{server}:{_KAFKA_PORT}", topic


def source_dataset(source: object, stream: StreamConfig, table: str | None) -> tuple[str, str]:
    """What a stream reads. `table` is the name with its schema as the database has it, once that is known."""
    url = getattr(source, "url", None)
    if isinstance(url, SecretStr) and stream.table is not None:
        parts = urlsplit(url.get_secret_value())
        login, at, hosts = parts.netloc.rpartition("@")
        return _database_dataset(parts._replace(netloc=login + at + hosts.split(",")[0]), stream.table, table)
    kind = str(getattr(source, "type", "unknown"))
    where = getattr(source, "domain", None) or (urlsplit(url).hostname if isinstance(url, str) else None)
    return f"{kind}://{where}" if where else kind, str(stream.table if stream.table is not None else stream.chat)


def _database_dataset(url: SplitResult, configured: str, known: str | None) -> tuple[str, str]:
    scheme = url.scheme.partition("+")[0]
    asked = {name: values[0].split(",")[0] for name, values in parse_qs(url.query).items()}
    host = url.hostname or asked.get("host", "")
    if not host and scheme not in _SERVERS:
        return scheme, f"{_file(url)}.{known or _parts(configured, fold=str)[-1]}"
    family, usual_port = _SERVERS.get(scheme, (scheme, None))
    if not host or host.startswith("/"):  # a local socket
        host = "localhost"
    port = url.port or asked.get("port") or usual_port
    database = unquote(url.path.removeprefix("/")) or asked.get("dbname", "")
    if "@" in url.path:  # what stands before it belongs to a password with a slash
        database = ""
    table = known or ".".join(_qualified(family, configured, database))
    where = f"[{host}]" if ":" in host else host
    return (
        f"{family}://{where}:{port}" if port else f"{family}://{where}",
        f"{database}.{table}" if family == "postgres" and database else table,
    )


def _file(url: SplitResult) -> Path:
    """The specification has no databases that are files; they are named as its other things are, by scheme and path."""
    return Path(unquote(url.path.removeprefix("/"))).absolute()


def _qualified(family: str, configured: str, database: str) -> tuple[str, ...]:
    """A table's parts, with the schema that is most likely meant where none is written."""
    parts = _parts(configured, fold=str.lower if family == "postgres" else str)
    default = "public" if family == "postgres" else database
    return parts if len(parts) > 1 or not default else (default, *parts)


def _parts(table: str, *, fold: Callable[[str], str]) -> tuple[str, ...]:
    try:
        return split_name(table, fold=fold)
    except ConfigError:  # the run is about to fail for it
        return (table,)
