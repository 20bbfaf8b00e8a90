"""Followed times without a zone are compared with the clock of the zone they are written in, west, east and while it is
put back: no row is read while another one may still get a lower time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pymysql
import pytest
from adbc_driver_postgresql import dbapi as postgres_dbapi
from adbc_driver_sqlite import dbapi as sqlite_dbapi

from producer.config import StreamConfig
from producer.config.zone import find_zone
from producer.errors import ConfigError
from producer.sources.sql.dialects import open_database
from producer.sources.sql.table import PUT_BACK_HOURS, Column, Database, Options, WriterZone
from producer.zones import lowest_offsets
from tests.integration.sql_reading import open_source, stream
from tests.integration.test_followed import following
from tests.services.process import program

FIXED = ("-05:00", "+00:00", "+05:30", "+13:00")
#: Zones, and a moment at which their clock is put back.
PUT_BACK = {
    "Europe/Paris": "2026-10-25 01:00",
    "America/New_York": "2026-11-01 06:00",
    "Australia/Lord_Howe": "2026-04-04 15:00",
    "Antarctica/Troll": "2026-10-25 01:00",
}
DAY = dt.timedelta(days=1)


def by_time(**settings: Any) -> StreamConfig:
    defaults = {"mode": "timestamp", "order_by": ["changed"], "poll_interval_s": 0.01, "delay_s": 30}
    return stream("events", **(defaults | settings))


# --- servers whose zone is set --------------------------------------------------------------------------------------


class Writer:
    """A session of a writer, with the server's own defaults, and what sets these; ids and times go into ``events``."""

    def __init__(self, url: str, connect: Callable[[], Any], now: str, change: Callable[[str], str]) -> None:
        self.url, self.connect, self.now, self._change = url, connect, now, change

    def set_zone(self, zone: str) -> None:
        self.run(self._change(zone))

    def run(self, *statements: str) -> None:
        with contextlib.closing(self.connect()) as connection:
            self.execute(connection, *statements)
            connection.commit()

    def execute(self, connection: Any, *statements: str) -> None:
        with contextlib.closing(connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)

    def insert(self, number: int, seconds_ago: float) -> str:
        return f"insert into events values ({number}, {self.now} - interval '{seconds_ago}' second)"


def of_mariadb(url: str) -> Writer:
    parts = urlsplit(url)
    return Writer(
        url,
        lambda: pymysql.connect(
            host=parts.hostname, port=parts.port or 3306, user="p", password="p", database=parts.path.lstrip("/")
        ),
        "now(6)",
        lambda zone: f"set global time_zone = '{zone}'",
    )


def of_postgres(url: str, scope: str) -> Writer:
    name = f"database {urlsplit(url).path.lstrip('/')}" if scope == "database" else "role postgres"

    def change(zone: str) -> str:
        """PostgreSQL takes an offset's sign the other way round."""
        return f"alter {name} set timezone to '<zone>{_inverted(zone)}'" if zone else f"alter {name} reset timezone"

    return Writer(url, lambda: postgres_dbapi.connect(url), "localtimestamp", change)


def _inverted(offset: str) -> str:
    return offset.translate(str.maketrans("+-", "-+"))


@pytest.fixture(params=["mariadb", "postgres database", "postgres role"])
def writer(request: pytest.FixtureRequest) -> Iterator[Writer]:
    kind, _, scope = request.param.partition(" ")
    if kind == "mariadb":
        made = of_mariadb(request.getfixturevalue("mariadb_url"))
    else:
        made = of_postgres(request.getfixturevalue("postgres_dsn"), scope)
    time = "datetime(6)" if kind == "mariadb" else "timestamp"
    made.run(f"create table events (id bigint primary key, changed {time})")
    try:
        yield made
    finally:
        made.set_zone("+00:00" if kind == "mariadb" else "")
        made.run("drop table events")


@pytest.mark.parametrize("zone", FIXED)
async def test_a_row_is_read_when_it_is_as_old_as_the_delay_by_the_servers_own_clock(zone: str, writer: Writer) -> None:
    writer.set_zone(zone)
    writer.run(writer.insert(1, 60), writer.insert(2, 0), writer.insert(3, -3600))
    async with following(writer.url, by_time()) as caught_up:
        assert await caught_up() == [1]


@pytest.mark.parametrize("zone", FIXED)
async def test_a_row_is_read_by_the_clock_of_the_configured_zone(zone: str, writer: Writer) -> None:
    writer.set_zone(zone)
    writer.run(writer.insert(1, 60), writer.insert(2, 0), writer.insert(3, -3600))
    writer.set_zone("+07:00")  # not what the writers have
    async with following(writer.url, by_time(zone=zone)) as caught_up:
        assert await caught_up() == [1]


async def test_a_row_that_commits_within_the_delay_is_not_lost_west_of_utc(writer: Writer) -> None:
    writer.set_zone("-05:00")
    writer.run(writer.insert(1, 60))
    async with following(writer.url, by_time(delay_s=3, late_commit_s=0)) as caught_up:
        with contextlib.closing(writer.connect()) as late:
            writer.execute(late, writer.insert(2, 0))
            writer.run(writer.insert(3, 0))
            found = await caught_up()
            late.commit()
        async with asyncio.timeout(30):
            while 3 not in found:
                found += await caught_up()
        assert found == [1, 2, 3]


async def test_the_assumed_zone_is_said_once_and_where_it_is_set(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.set_zone("-05:00")
    config = by_time()
    async with open_source(writer.url) as source:
        dataset = await source.describe(config)
        (remark,) = dataset.remarks
        assert "05" in remark
        assert "`zone` sets it" in remark
        (split,) = await source.plan(config, dataset)
        for _ in range(2):
            await (await source.reader(config, dataset, split)).close()
        assert not (await source.describe(by_time(zone="-05:00"))).remarks
    told = capsys.readouterr()
    assert (told.out + told.err).count("zone on the stream sets it") == 1


async def test_a_zone_for_times_that_have_one_is_refused(writer: Writer) -> None:
    with pytest.raises(ConfigError, match="zone is for times without a zone, and column 'id'"):
        async with open_source(writer.url) as source:
            await source.describe(stream("events", mode="tail", zone="-05:00"))


# --- clocks that are put back ---------------------------------------------------------------------------------------


class Scripted:
    """A database that says which local times are long ago, at moments that the test chooses."""

    def __init__(self, database: Database, sql_type: str, select: Callable[[str, dt.datetime], Sequence[Any]]) -> None:
        self.database = database
        self._column = Column("c", pa.field("c", pa.timestamp("us")), "t.c", sql_type)
        self._select = select

    def read(self, zone: WriterZone, now: dt.datetime, local: Sequence[dt.datetime]) -> list[dt.datetime]:
        """Those of the local times that are a second old at `now` (in UTC)."""
        found = self.read_any(zone, now, [f"cast('{time}' as {self._column.sql_type})" for time in local])
        return [local[row] for row in found]

    def read_any(self, zone: WriterZone, now: dt.datetime, values: Sequence[str]) -> list[int]:
        """The numbers of those of the values, which are SQL."""
        condition = self.database.older_than(self._column, 1, zone)
        rows = " union all ".join(f"select {value} as c, {row} as i" for row, value in enumerate(values))
        found = self._select(f"select i from ({rows}) t where {condition} order by i", now)
        return [int(row[0]) for row in found]


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def scripted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scripted]:
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        if request.param == "postgres":
            url = request.getfixturevalue("postgres_dsn")
            connection: Any = stack.enter_context(postgres_dbapi.connect(url))
            stack.enter_context(contextlib.closing(connection))

            def select(sql: str, now: dt.datetime) -> Sequence[Any]:
                with connection.cursor() as cursor:
                    cursor.execute(sql.replace("now()", f"timestamptz '{now}+00'"))
                    return list(cursor.fetchall())

            kind = "timestamp"
        elif request.param == "mariadb":
            url = request.getfixturevalue("mariadb_url")
            connection = stack.enter_context(contextlib.closing(of_mariadb(url).connect()))

            def select(sql: str, now: dt.datetime) -> Sequence[Any]:
                with connection.cursor() as cursor:
                    epoch = now.replace(tzinfo=dt.UTC).timestamp()
                    cursor.execute(f"set time_zone = '+00:00', timestamp = {epoch:f}")
                    cursor.execute(sql)
                    return list(cursor.fetchall())

            kind = "datetime"
        else:
            url = f"sqlite:////{str(tmp_path / 'x.db').lstrip('/')}"
            connection = stack.enter_context(sqlite_dbapi.connect(str(tmp_path / "x.db")))

            def select(sql: str, now: dt.datetime) -> Sequence[Any]:
                with connection.cursor() as cursor:
                    cursor.execute(sql.replace("'now'", f"'{now}'"))
                    return list(cursor.fetchall())

            kind = "text"
        yield Scripted(open_database(Options(url, 10, 10), pool), kind, select)


def moments(zone: str) -> list[dt.datetime]:
    """In UTC without saying so: some around a clock's change, and one of another half of the year."""
    put_back = dt.datetime.fromisoformat(PUT_BACK[zone])
    minutes = (-200, -121, -119, -61, -59, -31, -29, -1, 0, 1, 29, 31, 59, 61, 121)
    return [put_back - 180 * DAY, *(put_back + dt.timedelta(minutes=m, seconds=1) for m in minutes)]


def shown(zone: dt.tzinfo, moment: dt.datetime) -> dt.datetime:
    return moment.replace(tzinfo=dt.UTC).astimezone(zone).replace(tzinfo=None)


def check_bound(scripted: Scripted, zone: WriterZone, name: str, ahead: dt.timedelta | None = None) -> None:
    """Nothing is read that the clock may show again, and all else but so long `ahead` of its change (None: the time by
    which it is put back), when as much again is held back."""
    rules, change = find_zone(name), dt.datetime.fromisoformat(PUT_BACK[name])
    put_back = shown(rules, change - dt.timedelta(seconds=1)) - shown(rules, change) + dt.timedelta(seconds=1)
    for now in moments(name):
        local = [shown(rules, now) + dt.timedelta(minutes=m, seconds=-2) for m in range(-400, 401, 10)]
        found = scripted.read(zone, now, local)
        lowest = min(shown(rules, now + dt.timedelta(seconds=s - 1)) for s in range(0, 4 * 3600, 60))
        assert all(time < lowest for time in found), now
        is_near = change - (put_back if ahead is None else ahead) <= now - dt.timedelta(seconds=1) < change
        bound = lowest - put_back if is_near else lowest
        assert [time for time in local if time < bound] == [time for time in found if time < bound], now


@pytest.mark.parametrize("name", PUT_BACK)
def test_the_hour_that_a_configured_zone_has_twice_is_read_when_it_comes_for_the_second_time(
    name: str, scripted: Scripted
) -> None:
    now = dt.datetime.fromisoformat(PUT_BACK[name]).replace(tzinfo=dt.UTC) - 190 * DAY
    zone = WriterZone(name, lowest_offsets(find_zone(name), now))
    check_bound(scripted, zone, name)


@pytest.fixture
def named_zones(mariadb_url: str) -> Iterator[Writer]:
    """A MariaDB that knows the zones by their names."""
    writer = of_mariadb(urlsplit(mariadb_url)._replace(path="/mysql").geturl())
    tool = program("mariadb-tzinfo-to-sql") or program("mysql_tzinfo_to_sql")
    assert tool is not None
    writer.run(*(f"delete from {table}" for table in TABLES_OF_ZONES))
    for name in PUT_BACK:
        made = subprocess.run([tool, f"/usr/share/zoneinfo/{name}", name], capture_output=True, text=True, check=True)
        writer.run(*(line for line in made.stdout.replace("\n", " ").split(";") if "INSERT" in line or "SET @" in line))
    yield writer
    writer.set_zone("+00:00")


TABLES_OF_ZONES = ("time_zone", "time_zone_name", "time_zone_transition", "time_zone_transition_type")


@pytest.mark.parametrize("scripted", ["mariadb", "postgres"], indirect=True)
def test_the_hour_that_the_servers_own_zone_has_twice_is_read_when_it_comes_for_the_second_time(
    scripted: Scripted, named_zones: Writer
) -> None:
    for name in PUT_BACK:
        named_zones.set_zone(name)
        check_bound(scripted, WriterZone(name), name, dt.timedelta(hours=PUT_BACK_HOURS))


@pytest.mark.parametrize("scripted", ["sqlite"], indirect=True)
def test_texts_of_sqlite_with_an_offset_are_moments_whatever_the_zone(scripted: Scripted) -> None:
    zone = WriterZone("-05:00", lowest_offsets(find_zone("-05:00"), dt.datetime.now(dt.UTC)))
    old = ["2026-01-01 06:59:00", "2026-01-01T11:59:00Z", "2026-01-01 13:59:00+02:00", "2026-01-01T06:59:00.5-05:00"]
    young = ["2026-01-01 07:01:00", "2026-01-01T12:01:00Z", "2026-01-01 14:01:00+02:00", "2026-01-01 07:01:00-05:00"]
    assert scripted.read_any(zone, dt.datetime(2026, 1, 1, 12), [*map(repr, old), *map(repr, young)]) == [0, 1, 2, 3]
    assert scripted.read_any(zone, dt.datetime(2026, 1, 1, 12), ["1767268740", "1767268860", "1767268740.5"]) == [0, 2]
