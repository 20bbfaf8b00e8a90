"""Checks the arguments of a call before anything is asked of Telegram, so that an error names the argument."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from producer.errors import ConfigError
from producer.sources.telegram.config import in_utc

MAX_MESSAGE_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Query:
    """What one call reads: the messages after `after_id`, sent from `start_date` to `end_date`, at most `limit`."""

    group_id: int | str
    checkpoint_file: Path | None
    after_id: int
    start_date: dt.datetime | None
    end_date: dt.datetime | None
    limit: int | None


def query_of(**arguments: Any) -> Query:
    """The query of a call's arguments; ConfigError for the first of them that is wrong."""
    read = {name: read_argument(name, value) for name, value in arguments.items()}
    start, end = read["start_date"], read["end_date"]
    if start is not None and end is not None and start > end:
        raise ConfigError(f"start_date: {start} is after end_date, {end}")
    return Query(**read)


def read_argument(name: str, value: Any) -> Any:
    """The argument's value in its own type; ConfigError where it is wrong."""
    read, wanted = _ARGUMENTS[name]
    if value is None and name in _OPTIONAL:
        return None
    try:
        return read(value)
    except (ValueError, TypeError):
        raise ConfigError(f"{name}: {value!r} is not {wanted}") from None


def _group(value: Any) -> int | str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    return _whole(value, least=None)


def _whole(value: Any, *, least: int | None = 0, most: float = float("inf")) -> int:
    """Also numpy's integers."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError
    number = int(value)
    if number > most or (least is not None and number < least):
        raise ValueError
    return number


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def _path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise TypeError
    return Path(value)


def _moment(value: Any) -> dt.datetime | None:
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value)
    elif not isinstance(value, dt.datetime):
        if not isinstance(value, dt.date):
            raise TypeError
        value = dt.datetime.combine(value, dt.time())
    return in_utc(value)


def _function(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


#: argument -> (how it is read: ValueError or TypeError for a wrong value, what is right)
_ARGUMENTS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "group_id": (_group, "a number, an @name or a t.me link"),
    "checkpoint_file": (_path, "the path of a file"),
    "after_id": (lambda value: _whole(value, most=MAX_MESSAGE_ID), f"a message's id, from 0 to {MAX_MESSAGE_ID}"),
    "batch_size": (lambda value: _whole(value, least=1), "a whole number of at least 1"),
    "limit": (_whole, "a whole number of at least 0, or None"),
    "delay": (_seconds, "a number of seconds"),
    "start_date": (_moment, "a datetime"),
    "end_date": (_moment, "a datetime"),
    "progress_callback": (_function, "a function of (current, total, rate)"),
}
_OPTIONAL = frozenset({"checkpoint_file", "limit", "start_date", "end_date", "progress_callback"})
