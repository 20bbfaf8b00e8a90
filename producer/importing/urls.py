"""Owns turning JDBC URLs and Debezium's host, port and user into our source's URL, without any password in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from producer.errors import ConfigError
from producer.importing.settings import Draft

_SCHEMES = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mariadb", "sqlite": "sqlite"}
_USER = ("DATABASE_USER", "the database's user, percent-encoded")
_PASSWORD = ("DATABASE_PASSWORD", "the database's password, percent-encoded: it stands in a URL")
_KEPT = ("sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs")
#: JDBC's targetServerType as libpq has it; preferPrimary has no such form.
_WANTED = {
    "any": "any",
    "primary": "read-write",
    "master": "read-write",
    "secondary": "standby",
    "slave": "standby",
    "preferSecondary": "prefer-standby",
    "preferSlave": "prefer-standby",
}


def from_jdbc(draft: Draft, url: str, user: str) -> str:
    """Our URL for a JDBC one; `user` is ``connection.user``. The dialect's name, '' where the URL is a reference."""
    if "${" in url:
        draft.source["url"] = draft.variable(
            "DATABASE_URL", "the database's URL, as in postgresql://user:password@host/db"
        )
        return ""
    match = re.fullmatch(r"jdbc:(?P<kind>[a-z0-9]+):(?P<rest>.*)", url, re.IGNORECASE | re.DOTALL)
    if match is None:
        raise ConfigError("connection.url is not a JDBC URL", hint="such as jdbc:postgresql://host/database")
    kind, rest = match["kind"].lower(), match["rest"]
    if kind not in _SCHEMES:
        raise ConfigError(f"connection.url: {kind!r} is no known database", hint="known: " + ", ".join(_SCHEMES))
    if kind == "sqlite":
        draft.source["url"] = "sqlite:///" + rest.partition("?")[0].replace("$", "$$")
        return kind
    if not rest.startswith("//"):
        rest = "//localhost/" + rest  # jdbc:postgresql:database
    try:
        parts = urlsplit(rest)
        hosts, port = parts.netloc.rpartition("@")[2], parts.port if "," not in parts.netloc else None
    except ValueError:
        raise ConfigError("connection.url is not a JDBC URL", hint="such as jdbc:postgresql://host/database") from None
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "," in hosts and kind != "postgresql":
        hosts = hosts.split(",")[0]
        draft.note("connection.url", "names several hosts; only the first one is used")
    elif wanted := _WANTED.get(asked.get("targetServerType", "")):
        del asked["targetServerType"]
        asked["target_session_attrs"] = wanted
    several = "," in hosts or hosts.startswith("[")
    host, _, told = (hosts, "", "") if several else hosts.partition(":")
    user = user or asked.pop("user", "") or (parts.username or "")
    for secret in ("user", "password"):
        asked.pop(secret, None)
    database = parts.path.removeprefix("/")
    draft.source["url"] = make(draft, kind, f"{host}:{port or told}" if port or told else host, user, database, asked)
    return kind


def make(draft: Draft, kind: str, host: str, user: str, database: str, asked: Mapping[str, str]) -> str:
    """A URL with the password as a variable; parameters that the driver has no use for are noted."""
    who = draft.variable(*_USER) if "${" in user else quote(user, safe="").replace("$", "$$")
    where = draft.value(host or "localhost", "DATABASE_HOST", "the database's host and port")
    what = draft.value(database, "DATABASE_NAME", "the database's name")
    login = f"{who}:{draft.variable(*_PASSWORD)}@" if user else ""
    kept = {name: text for name, text in asked.items() if name in _KEPT and "${" not in text and kind == "postgresql"}
    if dropped := sorted(set(asked) - set(kept)):
        draft.note("connection.url", f"its parameters {', '.join(dropped)} are not taken over")
    query = "?" + urlencode(kept).replace("$", "$$") if kept else ""
    return f"{_SCHEMES[kind]}://{login}{where}/{what}{query}"


def table_name(parts: list[str], kind: str) -> str:
    """A table as our configuration writes it: what SQL would read differently is quoted."""
    plain = r"[a-z_][a-z0-9_]*" if kind == "postgresql" else r"[A-Za-z_][A-Za-z0-9_]*"
    quoted = (part if re.fullmatch(plain, part) else '"' + part.replace('"', '""') + '"' for part in parts)
    return ".".join(quoted).replace("$", "$$")
