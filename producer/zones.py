"""Time zones by name or offset: their clocks' changes, and local times as moments in UTC, whole arrays at a time.

Python's zoneinfo is the only source of the rules. Arrow's own conversion knows no daylight saving after 2037.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SECOND = dt.timedelta(seconds=1)
_FIRST_YEAR, _LAST_YEAR = 1, 9999
#: How far apart offsets are compared to find the changes between them: no zone has ever had two within so short a time.
_STEP_S = 3 * 86400
#: For so long the changes of a zone are told in advance; after that its lowest offset is assumed.
_FORESEEN = dt.timedelta(days=3 * 365)

Int64s = npt.NDArray[np.int64]


# --- what a zone's clock shows --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offset:
    """`seconds` ahead of UTC, until the moment `until` (seconds since 1970; None: from then on)."""

    seconds: int
    until: int | None


def lowest_offsets(zone: dt.tzinfo, now: dt.datetime) -> tuple[Offset, ...]:
    """From yesterday on, the offsets by which no local time is reached that the zone's clock may show again later.

    A clock that is about to be put back has its new offset by so much earlier: it reaches the hour that it has twice
    only when that comes for the second time.
    """
    since = now - dt.timedelta(days=1)
    changes = list(zone_changes(zone, _seconds(since), _seconds(since + _FORESEEN)))
    found, before = [], _offset_at(zone, _seconds(since))
    lowest = min([before, *(after for _, _, after in changes)])
    for moment, earlier, later in changes:
        found.append(Offset(before, moment - max(0, earlier - later)))
        before = later
    if not changes:
        return (Offset(before, None),)
    return (*found, Offset(before, _seconds(since + _FORESEEN)), Offset(lowest, None))


def _seconds(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // _SECOND


def _offset_at(zone: dt.tzinfo, second: int) -> int:
    """Seconds ahead of UTC; beyond the years that Python knows, the offset at their edge."""
    offset = dt.datetime.fromtimestamp(min(max(second, _YEAR_1_S), _YEAR_9999_S), zone).utcoffset()
    assert offset is not None
    return offset // _SECOND


#: A day and more from what Python cannot represent.
_YEAR_1_S = _seconds(dt.datetime(_FIRST_YEAR, 1, 3, tzinfo=dt.UTC))
_YEAR_9999_S = _seconds(dt.datetime(_LAST_YEAR, 12, 30, tzinfo=dt.UTC))


def zone_changes(zone: dt.tzinfo, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(moment, offset before, offset after) of each change in a time, all in seconds."""
    before, low = _offset_at(zone, start), start
    while low < stop:
        high = min(low + _STEP_S, stop)
        if (after := _offset_at(zone, high)) != before:
            yield _first_second(zone, low, high), before, after
            before = after
        low = high


def _first_second(zone: dt.tzinfo, low: int, high: int) -> int:
    """The first moment that has the offset of `high` and not that of `low`."""
    before = _offset_at(zone, low)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset_at(zone, middle) == before:
            low = middle
        else:
            high = middle
    return high


# --- local times ----------------------------------------------------------------------------------------------------


def local_to_utc(zone: dt.tzinfo, local_micros: Int64s) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """Local times as moments, both in microseconds since 1970; and which of them the zone's clock never showed.

    Of a time that it showed twice the first moment is taken.
    """
    if len(local_micros) == 0:
        return local_micros, np.zeros(0, np.bool_)
    years = np.unique(local_micros.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64)) + 1970
    table = _table(zone, tuple(np.unique(np.clip(years, _FIRST_YEAR, _LAST_YEAR)).tolist()))
    seconds = local_micros // 1_000_000
    passed = np.searchsorted(table.shown_before, seconds, side="right")
    shifts = table.offsets[passed]
    skipped = seconds < table.first_shown[passed]
    return local_micros - shifts * 1_000_000, skipped


@dataclass(frozen=True, slots=True)
class _Table:
    """A zone's changes in order: what the clock showed at each before it was changed, and, one more of each, the offset
    from then on and the first time that it shows with that."""

    shown_before: Int64s
    offsets: Int64s
    first_shown: Int64s


@functools.lru_cache(maxsize=256)
def _table(zone: dt.tzinfo, years: tuple[int, ...]) -> _Table:
    around = sorted({year + shift for year in years for shift in (-1, 0, 1)})
    changes = [change for year in around for change in _year(zone, year)]
    moments, before, after = (np.array(column, np.int64) for column in zip(*changes, strict=True))
    first = np.iinfo(np.int64).min
    return _Table(
        moments + before,
        np.concatenate([before[:1], after]),
        np.concatenate([np.array([first], np.int64), moments + after]),
    )


@functools.lru_cache(maxsize=20_000)
def _year(zone: dt.tzinfo, year: int) -> tuple[tuple[int, int, int], ...]:
    """The year's changes, behind one that is none: the offset at its beginning, for tables that have not all years."""
    start, stop = (int(np.datetime64(f"{y:04d}-01-01", "s").astype(np.int64)) for y in (year, year + 1))
    offset = _offset_at(zone, start)
    return ((start, offset, offset), *zone_changes(zone, start, stop))
