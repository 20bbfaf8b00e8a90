"""Owns the claims about followed streams: where they begin, what a delay holds back, and that nothing is left out."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from producer.config import StreamConfig
from producer.errors import ConfigError
from producer.model import Checkpoint, Position
from producer.protocols import PageReader, RememberingReader
from tests.audit import TopicAudit
from tests.faults.killing import finish, start, state_of
from tests.integration.following import ID, configured, reaches, update_during_snapshot
from tests.integration.sql_reading import open_source, stream
from tests.sql import TABLES, Databank, databank


@pytest.fixture(params=TABLES)
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    made = databank(request.param, request)
    moment = {"postgres": "timestamptz", "sqlite": "timestamp", "mariadb": "datetime(6)"}[request.param]
    made.run(f"create table events (id bigint primary key, changed {moment})")
    made.run("create table pairs (a int not null, b int not null, primary key (a, b))")
    yield made
    made.run("drop table events")
    made.run("drop table pairs")
    made.close()


def ago(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(tzinfo=None) - dt.timedelta(seconds=seconds)


@contextlib.asynccontextmanager
async def following(url: str, config: StreamConfig) -> AsyncIterator[Callable[[], Any]]:
    """The ids of all pages up to the present end, whenever it is called."""
    async with open_source(url) as source:
        dataset = await source.describe(config)
        (split,) = await source.plan(config, dataset)
        reader: PageReader = await source.reader(config, dataset, split)
        if isinstance(reader, RememberingReader):
            reader.restore(Checkpoint(split).detail)
        position: Position | None = None

        async def caught_up() -> list[Any]:
            nonlocal position
            found: list[Any] = []
            while True:
                page = await reader.fetch(position, config.page_size)
                position = page.position if page.position is not None else position
                found += page.batch.column(0).to_pylist()
                if page.last and not page.rows:
                    return found

        yield caught_up
        await reader.close()


def by_time(**settings: Any) -> StreamConfig:
    return stream("events", mode="timestamp", order_by=["changed"], poll_interval_s=0.01, **settings)


async def test_equal_times_over_the_edges_of_pages_are_all_read(bank: Databank) -> None:
    moment = ago(60)
    bank.insert("events", [(n, moment) for n in range(50)])
    async with following(bank.url, by_time(page_size=7)) as caught_up:
        assert sorted(await caught_up()) == list(range(50))
        bank.insert("events", [(n, moment) for n in range(50, 60)])  # the same moment, after its rows have been read
        assert sorted(await caught_up()) == list(range(50, 60))


async def test_a_row_is_read_when_it_is_as_old_as_the_delay(bank: Databank) -> None:
    bank.insert("events", [(1, ago(60)), (2, ago(0)), (3, ago(-3600))])
    async with following(bank.url, by_time(delay_s=1.5)) as caught_up:
        assert await caught_up() == [1]
        found: list[int] = []
        async with asyncio.timeout(30):
            while not found:
                found = await caught_up()
        assert found == [2]  # and not 3, whose time is still to come


async def test_a_clock_that_steps_back_by_less_than_the_delay_hides_no_row(bank: Databank) -> None:
    bank.insert("events", [(1, ago(60)), (2, ago(30.5))])
    async with following(bank.url, by_time(delay_s=30)) as caught_up:
        assert await caught_up() == [1, 2]
        bank.insert("events", [(3, ago(30.2))])  # written now by a clock that is late by almost the delay
        assert await caught_up() == [3]


async def test_a_changed_row_comes_again_with_its_new_time(bank: Databank) -> None:
    bank.insert("events", [(1, ago(60)), (2, ago(50))])
    async with following(bank.url, by_time()) as caught_up:
        assert await caught_up() == [1, 2]
        bank.run(f"update events set changed = '{ago(20).isoformat(' ')}' where id = 1")
        assert await caught_up() == [1]


async def test_a_null_time_is_refused_by_name(bank: Databank) -> None:
    bank.insert("events", [(1, None)])
    with pytest.raises(ConfigError, match=r"1 row has NULL in column 'changed' .*coalesce\(changed"):
        async with following(bank.url, by_time()):
            pass


async def test_a_column_that_is_no_time_is_refused_by_name(bank: Databank) -> None:
    with pytest.raises(ConfigError, match=r"'id' of type .* is no time"):
        async with following(bank.url, stream("events", mode="timestamp", order_by=["id"])):
            pass


async def test_latest_begins_after_what_is_there(bank: Databank) -> None:
    bank.insert("events", [(n, ago(60)) for n in (1, 2, 5)])
    async with following(bank.url, stream("events", mode="tail", start="latest", poll_interval_s=0.01)) as caught_up:
        assert await caught_up() == []
        bank.insert("events", [(6, ago(0)), (9, ago(0))])
        assert await caught_up() == [6, 9]
        await asyncio.sleep(0.02)  # so that the next fetch is a poll
        bank.insert("events", [(7, ago(0)), (4, ago(0))])  # lower ones, late
        assert await caught_up() == [4, 7]


async def test_a_condition_does_not_make_holes_of_the_rows_that_it_leaves_out(bank: Databank) -> None:
    config = stream("events", mode="tail", where="id % 2 = 0", poll_interval_s=0.01)
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        (split,) = await source.plan(config, dataset)
        reader = await source.reader(config, dataset, split)
        bank.insert("events", [(n, ago(0)) for n in range(1, 21) if n != 8])
        page = await reader.fetch(None, 100)
        assert page.detail is not None
        assert [(first, last) for first, last, *_ in page.detail["holes"]][1:] == [(8, 8)]
        await reader.close()


async def test_a_composite_key_is_followed(bank: Databank) -> None:
    bank.insert("pairs", [(1, n) for n in range(10)])
    async with following(bank.url, stream("pairs", mode="tail", page_size=3, poll_interval_s=0.01)) as caught_up:
        assert len(await caught_up()) == 10
        bank.insert("pairs", [(1, 10), (2, 0)])
        assert await caught_up() == [1, 2]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["tail", "snapshot_then_tail"])
def test_once_catches_up_and_the_next_run_goes_on(
    mode: str, bank: Databank, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = configured(tmp_path, bank.url, kafka_bootstrap, unique, mode=mode, page_size=10, max_parallel=2)
    bank.insert("events", [(n, ago(0)) for n in range(1, 101)])
    (summary,) = finish(start(config, "--once"))
    assert (summary["state"], summary["acked"]) == ("complete", 100)
    bank.insert("events", [(n, ago(0)) for n in range(101, 151)])
    (summary,) = finish(start(config, "--once"))
    assert (summary["state"], summary["acked"]) == ("complete", 50)
    state = state_of(config, "events")
    assert state is not None
    assert [c.split.upper is None for c in state.checkpoints].count(True) == 1


@pytest.mark.timeout(120)
def test_a_snapshot_that_was_complete_is_followed_when_the_mode_says_so(
    bank: Databank, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    bank.insert("events", [(n, ago(0)) for n in range(1, 11)])
    finish(start(configured(tmp_path, bank.url, kafka_bootstrap, unique), "--once"))
    bank.insert("events", [(11, ago(0))])
    config = configured(tmp_path, bank.url, kafka_bootstrap, unique, mode="snapshot_then_tail")
    (summary,) = finish(start(config, "--once"))
    assert summary["acked"] == 1


@pytest.mark.timeout(120)
def test_a_notification_wakes_a_tail_that_would_sleep_for_an_hour(
    postgres_dsn: str, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    from tests.sql import postgres

    bank = postgres(postgres_dsn)
    bank.run("create table events (id bigint primary key)")
    bank.run("insert into events values (1)")
    config = configured(
        tmp_path, bank.url, kafka_bootstrap, unique, mode="tail", notify="fresh rows", poll_interval_s=3600
    )
    audit = TopicAudit(kafka_bootstrap, unique, ID)
    process = start(config)

    def has(number: int) -> bool:
        audit.catch_up()
        return (number,) in audit.keys

    def listeners() -> bool:
        return len(ids_of(bank, "select pid from pg_stat_activity where query like 'LISTEN%'")) == 1

    def ids_of(bank: Databank, sql: str) -> list[Any]:
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(bank.url) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    try:
        assert reaches(lambda: has(1))
        assert reaches(listeners)
        for number in (2, 3):
            bank.run(f"insert into events values ({number})")
            bank.run('notify "fresh rows"')
            assert reaches(partial(has, number))
        bank.run("select pg_terminate_backend(pid) from pg_stat_activity where query like 'LISTEN%'")
        bank.run("insert into events values (4)")  # nobody is told: the new connection asks
        assert reaches(lambda: has(4))
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        audit.close()
        bank.run("drop table events")
        bank.close()


@pytest.mark.timeout(180)
def test_updates_during_a_snapshot_end_with_each_rows_final_state_and_never_go_back(
    postgres_dsn: str, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    updated = update_during_snapshot(tmp_path, postgres_dsn, kafka_bootstrap, unique, rows=40_000, updates=120_000)
    assert updated.updates == 120_000
