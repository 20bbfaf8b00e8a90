"""Time zones: local times become the moments that Python's own rules give, and no bound passes a time to come."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import pytest

from producer.config.zone import find_zone
from producer.zones import Offset, local_to_utc, lowest_offsets, zone_changes

EPOCH = dt.datetime(1970, 1, 1)
CHANGING = ("Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Africa/Casablanca")


def micros(moment: dt.datetime) -> int:
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def local_times(name: str, zone: ZoneInfo) -> list[dt.datetime]:
    """Some of any time, and those around the changes of three years."""
    rng = random.Random(name)
    found = [EPOCH + dt.timedelta(seconds=rng.randint(-50_000_000_000, 200_000_000_000)) for _ in range(2)]
    for year in (1916, 2024, 2060):
        start = micros(dt.datetime(year, 1, 1)) // 1_000_000
        for moment, before, after in zone_changes(zone, start, start + 366 * 86400):
            for offset in (before, after):
                found += [EPOCH + dt.timedelta(seconds=moment + offset + s) for s in (-1800, -1, 0, 900, 3599)]
    return found


def test_every_zones_local_times_are_the_moments_that_python_gives() -> None:
    skipped_times = 0
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        local = local_times(name, zone)
        found, skipped = local_to_utc(zone, np.array([micros(moment) for moment in local], np.int64))
        for moment, at, is_skipped in zip(local, found.tolist(), skipped.tolist(), strict=True):
            offset = moment.replace(tzinfo=zone).utcoffset()
            assert offset is not None
            expected = moment - offset
            never_shown = expected.replace(tzinfo=dt.UTC).astimezone(zone).replace(tzinfo=None) != moment
            assert is_skipped == never_shown, (name, moment)
            assert never_shown or at == micros(expected), (name, moment)
            skipped_times += never_shown
    assert skipped_times > 1000


@pytest.mark.parametrize("name", ["+14:01", "5:30", "+5:30", "+05:60", "", "Europe/Pari", "../etc/passwd", "Europe"])
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone"):
        find_zone(name)


def bound(offsets: Sequence[Offset], at: dt.datetime) -> dt.datetime:
    """Up to which local time rows are read at a moment."""
    second = int(at.timestamp())
    shift = next(offset.seconds for offset in offsets if offset.until is None or second < offset.until)
    return (at + dt.timedelta(seconds=shift)).replace(tzinfo=None)


@pytest.mark.parametrize("name", CHANGING)
def test_no_local_time_is_read_that_the_clock_may_show_again(name: str) -> None:
    """A clock of five years, looked at every ten minutes around its changes and now and then in between."""
    zone, now = find_zone(name), dt.datetime(2024, 1, 15, 12, tzinfo=dt.UTC)
    start = int(now.timestamp())
    changes = list(zone_changes(zone, start, start + 5 * 366 * 86400))
    seconds = {start + day * 86400 * 30 for day in range(60)}
    for change, _, _ in changes:
        seconds |= {change + minutes * 60 for minutes in range(-240, 241, 10)}
    at = [dt.datetime.fromtimestamp(second, dt.UTC) for second in sorted(seconds)]
    shown = [moment.astimezone(zone).replace(tzinfo=None) for moment in at]
    lowest, offsets = dt.datetime.max, lowest_offsets(zone, now)
    for moment, local in zip(reversed(at), reversed(shown), strict=True):
        lowest = min(lowest, local)
        assert bound(offsets, moment) <= lowest, moment
        if moment < now + dt.timedelta(days=1000):  # what is held back is what the clock shows again, and no more
            assert local - bound(offsets, moment) <= dt.timedelta(hours=2)


@pytest.mark.parametrize("name", ["UTC", "Asia/Kolkata", "+05:30", "-03:00"])
def test_a_zone_whose_clock_is_not_changed_holds_back_nothing(name: str) -> None:
    zone, now = find_zone(name), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    (only,) = lowest_offsets(zone, now)
    assert only.until is None
    assert bound((only,), now) == now.astimezone(zone).replace(tzinfo=None)
