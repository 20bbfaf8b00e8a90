"""PostgreSQL's and its drivers' errors as ours: by SQLSTATE where the server has answered, else by libpq's words.

See https://www.postgresql.org/docs/current/errcodes-appendix.html. Of a value it says that it is wrong, and not where:
such errors are EncodeErrors without a key, for `producer.sources.sql.postgres_values` to find the row.
"""

from __future__ import annotations

import re
from typing import Any

from producer.errors import (
    AuthenticationError,
    ConfigError,
    EncodeError,
    PermanentError,
    ProducerError,
    SourceUnavailableError,
    TransientError,
)
from producer.postgres_urls import PostgresUrl

_GRANT = "grant SELECT on it (or on each column that is read), and USAGE on its schema, to the source's user"
_DOWN = "is the server up, and host and port in the source's url right?"
_URL = "check the source's url"
_LOG = "the server's log may say more"

#: The beginning of a SQLSTATE: what becomes of the error, and the way out. The longest one counts.
_BY_STATE: dict[str, tuple[type[ProducerError], str]] = {
    "08": (SourceUnavailableError, "the server, or a pooler in front of it, ended the connection"),
    "21": (EncodeError, ""),
    "22": (EncodeError, ""),
    "23": (EncodeError, ""),
    "25006": (PermanentError, "pages are read in read-only transactions: what a view calls must not write"),
    "25P03": (SourceUnavailableError, "idle_in_transaction_session_timeout is too short for a page"),
    "28": (AuthenticationError, "check url in the source"),
    "2F": (EncodeError, ""),
    "38": (EncodeError, ""),
    "39": (EncodeError, ""),
    "3D": (ConfigError, "check the database's name in the source's url"),
    "3F": (ConfigError, ""),
    "40": (TransientError, "a smaller page_size may help; on a standby also hot_standby_feedback"),
    "42": (ConfigError, ""),
    "42501": (AuthenticationError, _GRANT),
    "44": (EncodeError, ""),
    "53": (SourceUnavailableError, "the server is short of something"),
    "53100": (SourceUnavailableError, "the server's disk is full"),
    "53200": (SourceUnavailableError, "the server is short of memory: a smaller page_size or max_parallel may help"),
    "53300": (SourceUnavailableError, "lower max_connections in the source, or raise the server's or the role's limit"),
    "53400": (SourceUnavailableError, "a limit of the server's is too low; an index on the key avoids large sorts"),
    "54000": (EncodeError, ""),
    "55": (TransientError, ""),
    "57": (SourceUnavailableError, ""),
    "57014": (TransientError, "a smaller page_size or a longer statement_timeout_s may help"),
    "57P01": (SourceUnavailableError, "the server was stopped, or somebody ended the connection"),
    "57P02": (SourceUnavailableError, "the server has crashed, and starts again by itself"),
    "57P03": (SourceUnavailableError, "the server is starting, stopping or recovering: it takes no connections yet"),
    "57P05": (SourceUnavailableError, "idle_session_timeout ended the connection"),
    "58": (SourceUnavailableError, _LOG),
    "72": (TransientError, "a smaller page_size may help"),
    "F0": (SourceUnavailableError, _LOG),
    "HV": (SourceUnavailableError, "it comes from the foreign server or the file behind the table"),
    "P0": (EncodeError, ""),
    "XX": (SourceUnavailableError, _LOG),
    "XX001": (EncodeError, ""),
    "XX002": (PermanentError, "an index is corrupt: REINDEX it"),
}

#: libpq gives no SQLSTATE for what the server says before a connection is there, nor for what it finds itself.
_BY_WORDS: tuple[tuple[str, str], ...] = (
    ("authentication failed|no password supplied|pg_hba|role .* does not exist|not permitted to log in", "28000"),
    ("SSL error|certificate|private key file|no such user", "28000"),
    ("database .* does not exist|no such database", "3D000"),
    ("permission denied for database", "42501"),
    ("too many clients|too many connections|connection slots are reserved|no more connections allowed", "53300"),
    ("starting up|shutting down|in recovery mode|not (currently |yet )?accepting connections", "57P03"),
    ("ReadRecord failed at row", "22000"),  # the driver has no form for a value
)
_TOO_LARGE = re.compile("invalid memory alloc request size|array size exceeds")  # of one value, and not of the server
_UNREADABLE = re.compile("conversion between .* is not supported")
_WRONG_URL = re.compile(
    "definition of service .* not found|service file .* not found|invalid .* value|invalid connection option"
    "|invalid URI|invalid integer|could not match|invalid port number"
)
_OTHER_SERVER = re.compile("session is (not )?read-only|server is (not )?in hot standby")
_BROKE = re.compile("server closed the connection|SSL SYSCALL|EOF detected|connection to server was lost")


def translate(error: Any, url: PostgresUrl) -> ProducerError:
    """The driver's error as ours, without the URL's secrets."""
    raw = str(error)
    text = _first_line(raw)
    for secret in url.secrets:
        text = text.replace(secret, "***")
    where = f"PostgreSQL at {url.where}"
    state = (error.sqlstate or "").strip("\0")
    if not state or state == "08P01":  # by which poolers tell of all kinds of things
        state = next((code for words, code in _BY_WORDS if re.search(words, raw)), state)
    if not state:
        return _unanswered(raw, f"{where}: {text}")
    if state == "XX000" and _TOO_LARGE.search(raw):
        return EncodeError(text)
    found, hint = next(
        (_BY_STATE[state[:length]] for length in (5, 3, 2) if state[:length] in _BY_STATE), (PermanentError, "")
    )
    if found is EncodeError:
        return EncodeError(text)
    if state.startswith("28"):
        text = f"refused user {url.user!r}: {text}"
        return AuthenticationError(f"{where} {text}", hint=hint)
    return found(f"{where}: {text}", hint=hint)


def _unanswered(raw: str, message: str) -> ProducerError:
    """What libpq says by itself, and what a server says that has no rule here."""
    if _UNREADABLE.search(raw):
        return ConfigError(message, hint="the database's encoding cannot be read as UTF-8, by which all text is read")
    if _WRONG_URL.search(raw):
        return ConfigError(message, hint=_URL)
    if _OTHER_SERVER.search(raw):
        hint = "none of the servers is what target_session_attrs in the source's url asks for"
        return SourceUnavailableError(message, hint=hint)
    answered = "FATAL:" in raw or _BROKE.search(raw)
    return SourceUnavailableError(message, hint="" if answered else _DOWN)


def _first_line(text: str) -> str:
    """The server's own words in a driver's text of several lines; of several servers all that was met."""
    servers = re.findall(r"connection to server (?:at|on) .* failed: .*", text)
    if len(servers) > 1:
        return re.sub(r"\s+", " ", "; ".join(servers)).strip().rstrip(".")
    found = re.search(r"(?:ERROR|FATAL|PANIC):\s+(.*)", text)
    line = found.group(1) if found else text.strip().splitlines()[0] if text.strip() else "no reason given"
    line = re.sub(r"^[A-Z_]+: \[libpq\] (Failed to connect: |ReadRecord failed at row \d+: )?", "", line)
    return re.sub(r"\s+", " ", line).strip().rstrip(".")
