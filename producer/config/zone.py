"""The names of time zones that a configuration may give: IANA names, and offsets from UTC."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import BeforeValidator

from producer.config.explain import nearest

_OFFSET = re.compile(r"([+-])(\d\d):([0-5]\d)")
_MOST_OFFSET = dt.timedelta(hours=14)


def find_zone(name: str) -> dt.tzinfo:
    """The zone of an IANA name such as ``Europe/Paris``, or of an offset such as ``+05:30``; ValueError for others."""
    if found := _OFFSET.fullmatch(name):
        sign, hours, minutes = found.groups()
        offset = dt.timedelta(hours=int(hours), minutes=int(minutes))
        if offset <= _MOST_OFFSET:
            return dt.timezone(-offset if sign == "-" else offset)
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        near = nearest(name, available_timezones())
        raise ValueError(f"{name!r} is not a time zone{near}, such as Europe/Paris or '+05:30'") from None


def _known(value: object) -> object:
    """YAML reads an offset without quotes, such as -10:00, as a number."""
    if isinstance(value, int | float):
        raise ValueError("a time zone is text; put an offset in quotes, such as '+05:30'")
    if isinstance(value, str):
        find_zone(value)
    return value


ZoneName = Annotated[str, BeforeValidator(_known)]
