"""Reads the API's answers: JSON without a rounded number, and which of its errors may pass by themselves."""

from __future__ import annotations

import contextlib
import decimal
import json
import re
from typing import Any

import orjson

from producer.errors import PermanentError, ProducerError, SourceUnavailableError

Json = Any

#: A number of more digits than a double carries, which orjson would round without a word.
_LONG_NUMBER = re.compile(rb"[0-9.]{17,}")
_SESSION = re.compile(r"session|authori[sz]|not logged|unauthenticated", re.IGNORECASE)
#: What PostgreSQL and its poolers say when the same query may succeed a moment later.
_TRANSIENT = re.compile(
    r"deadlock|could not serialize|lock timeout|lock wait|could not obtain lock|statement timeout|timed? ?out"
    r"|too many (?:clients|connections|requests)|connection slots|pool(?:er)? .*exhausted|conflict with recovery"
    r"|(?:server|connection|database|backend|system) .*(?:closed|lost|reset|refused|shutting down|terminated)"
    r"|terminating connection|shutting down|starting up|recovery mode|temporar(?:y|ily)|try again|unavailable"
    r"|out of (?:shared )?memory|\b(?:40001|40P01|55P03|57014|57P0[1-3]|53[0-9]{3}|08[0-9]{3})\b",
    re.IGNORECASE,
)
_TRANSIENT_CODES = frozenset({408, 429, *range(500, 600)})


def loads(raw: bytes) -> Json:
    """The answer's JSON. Whole numbers of any size stay whole; a number with more digits than a double carries is a
    Decimal; NaN and infinities, which PHP and Python servers write although JSON has none, are floats.
    SourceUnavailableError where it is not JSON at all."""
    if _LONG_NUMBER.search(raw) is None:
        with contextlib.suppress(ValueError):
            return orjson.loads(raw)
    try:
        return json.loads(raw, parse_float=_number)
    except (ValueError, RecursionError):
        raise SourceUnavailableError("iptvportal: the answer is not JSON (cut short, or not from the API)") from None


def _number(text: str) -> float | decimal.Decimal:
    """The shortest of float and Decimal that has all digits of `text`."""
    exact = decimal.Decimal(text)
    number = float(text)
    return number if decimal.Decimal(repr(number)) == exact else exact


def error_text(error: Json) -> str:
    """A JSON-RPC error as one text."""
    if isinstance(error, dict):
        code, message = error.get("code"), str(error.get("message", ""))
        return f"{message} (code {code})" if code is not None else message
    return str(error)


def is_session_error(error: Json) -> bool:
    """Whether the session, and nothing else, is what the API refuses."""
    return _SESSION.search(error_text(error)) is not None


def error_of(subject: str, error: Json, clean_text: str) -> ProducerError:
    """A JSON-RPC error as ours: transient where a retry can help, else permanent."""
    code = error.get("code") if isinstance(error, dict) else None
    if is_session_error(error):
        return SourceUnavailableError(f"{subject}: {clean_text}", hint="does another program use the same account?")
    if code in _TRANSIENT_CODES or _TRANSIENT.search(error_text(error)):
        return SourceUnavailableError(f"{subject}: {clean_text}")
    return PermanentError(f"{subject}: {clean_text}")
