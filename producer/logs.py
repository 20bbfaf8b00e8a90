"""Owns the logs: where they go (stderr), how they look (plain or JSON), and that no secret is in them.

Secrets are taken out twice: a SecretStr is never unwrapped, and the values of all secrets in the configuration are
replaced wherever they turn up in a text, since drivers like to quote what they were given. So are the passwords of URLs
that are no secrets themselves, and of the environment variables by which OpenTelemetry is told its endpoint.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Literal

import structlog
from pydantic import BaseModel, SecretBytes, SecretStr

from producer.urls import passwords

LogFormat = Literal["auto", "plain", "json"]
HIDDEN = "[secret]"
_MIN_SECRET_LENGTH = 4  # a shorter one would be found in half of all words

Redact = Callable[[str], str]


def redactor(config: object) -> Redact:
    """A function that replaces each secret of `config` (whole, and the password in a secret URL) in a text."""
    endpoints = [value for name, value in os.environ.items() if name.startswith("OTEL_EXPORTER_")]
    secrets = (part for secret in _secrets(config) for part in _parts(secret))
    told = (password for text in endpoints for password in passwords(text))
    found = {part for part in (*secrets, *told) if len(part) >= _MIN_SECRET_LENGTH}
    longest_first = sorted(found, key=len, reverse=True)

    def redact(text: str) -> str:
        for secret in longest_first:
            text = text.replace(secret, HIDDEN)
        return text

    return redact


def _secrets(value: object) -> Iterator[str]:
    match value:
        case str():
            yield from passwords(value)
        case SecretStr():
            yield value.get_secret_value()
        case SecretBytes():
            yield value.get_secret_value().decode(errors="replace")
        case BaseModel():
            for name in type(value).model_fields:
                yield from _secrets(getattr(value, name))
        case Mapping():
            for item in value.values():
                yield from _secrets(item)
        case list() | tuple():
            for item in value:
                yield from _secrets(item)


def _parts(secret: str) -> Iterator[str]:
    yield secret
    yield from passwords(secret)


def _clean(value: Any, redact: Redact) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return redact(value)
        case SecretStr() | SecretBytes():
            return HIDDEN
        case Mapping():
            return {str(key): _clean(item, redact) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(item, redact) for item in value]
    return redact(str(value))


def _plain(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """``12:00:01 warning  retrying in 2 s  stream=events``, and a traceback on the lines after it."""
    time, level = str(event.pop("timestamp"))[11:19], event.pop("level")
    text, trace = event.pop("event"), event.pop("exception", None)
    pairs = " ".join(f"{key}={_quoted(value)}" for key, value in event.items())
    line = f"{time} {level:<8} {text}" + (f"  {pairs}" if pairs else "")
    return f"{line}\n{trace}" if trace else line


def _quoted(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() for c in text) else text


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the moment: the live display of progress puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except (OSError, ValueError):
            return  # nobody reads the logs any more; that must not stop the data


def configure_logs(level: str = "info", log_format: LogFormat = "auto", redact: Redact = str) -> None:
    """Sends our own logs and the libraries' (warnings and worse) to stderr; ``auto`` is plain text."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]

    def clean(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {key: _clean(value, redact) for key, value in event.items()}

    render: Any = structlog.processors.JSONRenderer() if log_format == "json" else _plain
    handler = _Stderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, clean, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("producer").setLevel(level.upper())
    # aiokafka reports each attempt of a connection as an error; what comes of it, we say in one line ourselves.
    logging.getLogger("aiokafka").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
