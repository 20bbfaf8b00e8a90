"""Owns the claims about late commits one by one: what finds them, when it stops looking, and what it is spared."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from adbc_driver_postgresql import dbapi
from structlog.testing import capture_logs

from producer import holes
from producer.config import StreamConfig
from producer.errors import ConfigError, EncodeError, SchemaChangedError
from producer.model import Checkpoint, KeyPosition, Position, Split, checkpoint_from_json, checkpoint_to_json
from producer.protocols import RememberingReader
from producer.sources.sql import tail
from tests.integration.sql_reading import open_source, stream
from tests.sql import Databank, databank, postgres


@pytest.fixture
def bank(postgres_dsn: str) -> Iterator[Databank]:
    made = postgres(postgres_dsn)
    made.run("create table events (id bigint primary key, body text not null default '')")
    made.run('create table moments (at text collate "C", n int, primary key (at, n))')
    yield made
    made.run("drop table events")
    made.run("drop table moments")
    made.close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second is long."""
    monkeypatch.setattr(tail, "PASSAGE_S", 0.1)


@contextlib.contextmanager
def transaction(bank: Databank, *statements: str) -> Iterator[Any]:
    """A connection with an open transaction that has run the statements."""
    with dbapi.connect(bank.url) as connection:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        yield connection
        with contextlib.suppress(dbapi.Error):
            connection.rollback()


class Following:
    """A followed split of a stream, read as the engine reads it, over restarts."""

    def __init__(self, source: Any, config: StreamConfig, split: Split) -> None:
        self._source = source
        self._config = config
        self.checkpoint = Checkpoint(split)
        self.reader: RememberingReader
        self.position: Position | None = None
        self.rejected: list[str] = []

    async def restart(self) -> None:
        """From the checkpoint as a store gives it back."""
        self.checkpoint = checkpoint_from_json(checkpoint_to_json(self.checkpoint))
        dataset = await self._source.describe(self._config)
        reader = await self._source.reader(self._config, dataset, self.checkpoint.split)
        assert isinstance(reader, RememberingReader)
        self.reader, self.position = reader, self.checkpoint.position
        reader.restore(self.checkpoint.detail)

    async def read(self) -> list[Any]:
        """The first columns of the rows up to the present end."""
        found: list[Any] = []
        while True:
            page = await self.reader.fetch(self.position, self._config.page_size)
            self.position = page.position if page.position is not None else self.position
            self.checkpoint = Checkpoint(self.checkpoint.split, self.position, detail=page.detail)
            found += page.batch.column(0).to_pylist()
            self.rejected += [row.error.key or "" for row in page.rejected]
            if page.last and not page.rows:
                return found

    async def reads(self, wanted: Any) -> list[Any]:
        """Reads on until `wanted` has come: what came."""
        found: list[Any] = []
        async with asyncio.timeout(30):
            while wanted not in found:
                found += await self.read()
        return found

    @property
    def ledger(self) -> holes.Ledger:
        assert self.checkpoint.detail is not None
        return holes.from_json(self.checkpoint.detail)


@contextlib.asynccontextmanager
async def following(bank: Databank, table: str = "events", **settings: Any) -> AsyncIterator[Following]:
    config = stream(table, **{"mode": "tail", "poll_interval_s": 0.01, "page_size": 50, **settings})
    async with open_source(bank.url) as source:
        *_, split = await source.plan(config, await source.describe(config))
        made = Following(source, config, split)
        await made.restart()
        yield made
        await made.reader.close()


async def test_a_late_row_is_found_also_by_the_next_process(bank: Databank) -> None:
    async with following(bank) as tailed:
        with transaction(bank, "insert into events values (2)") as late:
            bank.run("insert into events values (1), (3)")
            assert await tailed.read() == [1, 3]
            await tailed.reader.close()
            await tailed.restart()
            assert await tailed.read() == []
            late.commit()
            assert await tailed.reads(2) == [2]
        assert all(hole.first != 2 for hole in tailed.ledger.holes)


async def test_the_first_row_of_all_may_be_late(bank: Databank) -> None:
    async with following(bank) as tailed:
        with transaction(bank, "insert into events values (1)") as late:
            bank.run("insert into events values (2)")
            assert await tailed.read() == [2]
            late.commit()
            assert await tailed.reads(1) == [1]


@pytest.mark.parametrize("where", [{}, {"where": "id <> 0"}])
async def test_a_position_that_is_set_into_missing_ids_is_gone_on_from(bank: Databank, where: dict[str, str]) -> None:
    async with following(bank, **where) as tailed:
        bank.run("insert into events values (1), (10), (12)")
        assert await tailed.read() == [1, 10, 12]
        tailed.checkpoint = replace(tailed.checkpoint, position=KeyPosition((5,)))
        await tailed.restart()
        bank.run("insert into events values (3), (8)")
        async with asyncio.timeout(30):
            assert sorted(await tailed.read()) == [3, 8, 10, 12]
        known = [(hole.first, hole.last) for hole in tailed.ledger.holes][1:]
        assert known == [(2, 2), (4, 7), (9, 9), (11, 11)]


async def test_a_rolled_back_id_is_asked_for_until_it_is_too_old_and_then_counted(bank: Databank) -> None:
    async with following(bank, late_commit_s=0.3) as tailed:
        bank.run("insert into events values (1), (3)")
        assert await tailed.read() == [1, 3]
        assert tailed.ledger.expired == 0
        async with asyncio.timeout(30):
            while tailed.ledger.holes:
                await tailed.read()
        assert tailed.ledger.expired == 2  # what may have been before the first, and 2
        assert holes.counts(tailed.checkpoint.detail) == (0, 2)


async def test_a_transaction_that_was_open_at_the_plan_is_found_far_below_what_the_plan_saw(
    bank: Databank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "PLANNED_IDS", 10)  # holes are looked for no lower
    monkeypatch.setattr(tail, "STEP_ROWS", 30)
    with transaction(bank, "insert into events values (5)") as late:
        bank.run("insert into events select g from generate_series(1, 200) g where g <> 5")
        async with following(bank, mode="snapshot_then_tail") as tailed:
            assert await tailed.read() == []  # the snapshot's splits have these
            late.commit()
            found = await tailed.reads(5)
            assert set(found) <= set(range(1, 201))
            assert await tailed.read() == []
            assert not tailed.ledger.passages


async def test_a_row_inserted_in_a_savepoint_is_found(bank: Databank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "PLANNED_IDS", 10)
    statements = ["savepoint a", "insert into events values (5)", "release savepoint a"]
    with transaction(bank, "select pg_current_xact_id()::text", *statements) as late:
        bank.run("insert into events select g from generate_series(1, 20) g where g <> 5")
        async with following(bank, mode="snapshot_then_tail") as tailed:
            late.commit()
            assert 5 in await tailed.reads(5)


async def test_a_key_that_is_no_integer_misses_no_late_row_either(bank: Databank) -> None:
    async with following(bank, "moments") as tailed:
        bank.run("insert into moments values ('a', 1), ('b', 1)")
        with transaction(bank, "insert into moments values ('c', 1)") as late:
            bank.run("insert into moments values ('d', 1)")
            assert await tailed.read() == ["a", "b", "d"]
            await tailed.restart()
            late.commit()
            assert "c" in await tailed.reads("c")


async def test_rows_that_committed_while_nothing_older_was_open_come_once(bank: Databank) -> None:
    async with following(bank, "moments") as tailed:
        found: list[Any] = []
        for n in range(20):
            bank.run(f"insert into moments values ('a', {n})")
            found += await tailed.read()
        async with asyncio.timeout(30):
            while tailed.ledger.passages:
                found += await tailed.read()
        assert 20 <= len(found) <= 25  # the server may have had something of its own open for a moment


async def test_a_transaction_that_has_only_read_when_its_range_was_looked_through_is_found(bank: Databank) -> None:
    bank.run("create table changes (id int primary key, changed timestamptz not null)")
    try:
        async with following(bank, "changes", mode="timestamp", order_by=["changed"], delay_s=0) as tailed:
            bank.run("insert into changes values (1, now()), (2, now())")
            assert await tailed.reads(2) == [1, 2]
            with transaction(bank, "select now()") as idle:  # its time, but no number yet
                bank.run("update changes set changed = now() where id = 2")
                assert await tailed.reads(2) == [2]
                async with asyncio.timeout(30):
                    while tailed.ledger.passages:
                        await tailed.read()
                with idle.cursor() as cursor:
                    cursor.execute("update changes set changed = now() where id = 1")
                idle.commit()
            assert await tailed.reads(1) == [1]
            await tailed.restart()
            assert await tailed.read() == []
    finally:
        bank.run("drop table changes")


async def test_a_snapshots_range_is_looked_through_once_more_at_the_end(bank: Databank) -> None:
    bank.run("create table changes (id int primary key, changed timestamptz not null)")
    settings = {"mode": "snapshot_then_tail", "order_by": ["changed"], "delay_s": 0, "late_commit_s": 3}
    try:
        bank.run("insert into changes values (1, now())")
        with transaction(bank, "select now()") as idle:
            bank.run("insert into changes values (2, now())")
            async with following(bank, "changes", **settings) as tailed:
                async with asyncio.timeout(30):
                    while not (await tailed.read() == [] and tailed.ledger.looked):
                        pass
                assert [passage.looks for passage in tailed.ledger.looked] == [holes.WIDE + 1]
                with idle.cursor() as cursor:
                    cursor.execute("update changes set changed = now() where id = 1")
                idle.commit()
                assert await tailed.reads(1) == [1]
                assert not tailed.ledger.looked
    finally:
        bank.run("drop table changes")


async def test_what_is_looked_through_again_stays_short_sends_nothing_twice_and_ends(bank: Databank) -> None:
    async with following(bank, "moments", late_commit_s=4) as tailed:
        found: list[Any] = []
        most, until = 0, time.monotonic() + 6
        while time.monotonic() < until:
            bank.run(f"insert into moments values ('{len(found):06d}', 1)")
            found += await tailed.read()
            most = max(most, len(tailed.ledger.looked))
            await asyncio.sleep(0.02)
        assert 2 <= most <= 30
        assert len(found) - len(set(found)) <= 10  # the server may have had something of its own open for a moment
        async with asyncio.timeout(30):
            while tailed.ledger.passages or tailed.ledger.looked:
                assert await tailed.read() == []


async def test_more_holes_than_a_checkpoint_may_keep_lose_nothing(
    bank: Databank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "MOST_HOLES", 5)
    async with following(bank) as tailed:
        with transaction(bank, "insert into events values (4), (100), (271)") as late:
            bank.run("insert into events select g from generate_series(0, 300, 3) g")
            assert len(await tailed.read()) == 101
            assert len(tailed.ledger.holes) == 5
            await tailed.restart()
            late.commit()
            found = await tailed.reads(271)
            assert {4, 100, 271} <= set(found)
            assert tailed.ledger.expired == 0


@pytest.mark.parametrize("dialect", ["sqlite", "mariadb"])
async def test_without_transaction_numbers_the_oldest_of_too_many_holes_are_given_up_counted_and_logged(
    dialect: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "MOST_HOLES", 5)
    bank = databank(dialect, request)
    bank.run("create table sparse (id bigint primary key)")
    try:
        async with following(bank, "sparse") as tailed:
            bank.insert("sparse", [(n,) for n in range(0, 60, 3)])
            with capture_logs() as logs:
                assert len(await tailed.read()) == 20
            (told,) = [line for line in logs if line["event"].startswith("too many ids are missing")]
            assert (told["log_level"], told["stream"]) == ("warning", "s")
            # What may come before the first, and 14 more.
            assert (told["ranges"], told["first"], told["last"]) == (15, holes.LEAST_ID, 41)
            assert holes.counts(tailed.checkpoint.detail) == (5, 15)
            await tailed.reader.close()
            await tailed.restart()
            bank.insert("sparse", [(4,), (44,)])
            assert await tailed.reads(44) == [44]
            await asyncio.sleep(0.05)
            assert await tailed.read() == []
            assert tailed.ledger.expired == 15
    finally:
        bank.run("drop table sparse")
        bank.close()


async def test_a_transaction_that_stays_open_holds_up_neither_new_rows_nor_other_late_ones(bank: Databank) -> None:
    async with following(bank, late_commit_s=5) as tailed:
        with transaction(bank, "insert into events values (1)"):
            with transaction(bank, "insert into events values (2)") as late:
                bank.run("insert into events values (3)")
                assert await tailed.read() == [3]
                late.commit()
                assert await tailed.reads(2) == [2]
            bank.run("insert into events values (4)")
            assert await tailed.read() == [4]


async def test_a_range_is_looked_through_without_waiting_for_a_transaction_beyond_late_commit_s(
    bank: Databank,
) -> None:
    async with following(bank, "moments", late_commit_s=0.5) as tailed:
        bank.run("insert into moments values ('a', 1)")
        with transaction(bank, "insert into moments values ('c', 1)"):
            with transaction(bank, "insert into moments values ('b', 1)") as late:
                bank.run("insert into moments values ('d', 1)")
                assert await tailed.read() == ["a", "d"]
                late.commit()
            assert "b" in await tailed.reads("b")
            async with asyncio.timeout(30):
                while tailed.ledger.passages:
                    await tailed.read()


async def test_a_late_row_that_cannot_be_read_is_rejected_once(bank: Databank) -> None:
    bank.run("create table dates (id bigint primary key, at timestamp)")
    try:
        async with following(bank, "dates", on_bad_record="dead_letter") as tailed:
            with transaction(bank, "insert into dates values (2, 'infinity')") as late:
                bank.run("insert into dates values (1, 'infinity'), (3, now()), (5, 'infinity')")
                page = await tailed.reader.fetch(None, 50)
                ranges = [(hole.first, hole.last) for hole in holes.from_json(page.detail or {}).holes]
                assert (page.rows, len(page.rejected), ranges[1:]) == (3, 2, [(2, 2), (4, 4)])
                tailed.position = page.position
                late.commit()
                rejected: list[int] = []
                async with asyncio.timeout(30):
                    while not rejected:
                        page = await tailed.reader.fetch(tailed.position, 50)
                        rejected += [row.columns.column("id")[0].as_py() for row in page.rejected]
                assert rejected == [2]
                assert await tailed.read() == []
    finally:
        bank.run("drop table dates")


async def test_a_range_is_not_looked_through_with_the_types_of_before(bank: Databank) -> None:
    bank.run('create table readings (at text collate "C" primary key, value bigint not null)')
    try:
        async with following(bank, "readings") as tailed:
            with transaction(bank, "insert into readings values ('a', 1)") as late:
                bank.run("insert into readings values ('b', 2)")
                assert await tailed.read() == ["b"]
                late.commit()
            bank.run("alter table readings alter column value type double precision")  # each row is written anew
            await asyncio.sleep(0.5)  # the range can be looked through
            with pytest.raises(SchemaChangedError):
                await tailed.reader.fetch(tailed.position, 50)
            await tailed.restart()
            assert "a" in await tailed.reads("a")
    finally:
        bank.run("drop table readings")


@pytest.fixture
def loose(request: pytest.FixtureRequest) -> Iterator[Databank]:
    """A table whose key is to be an integer, and need not be: reals stand among the integers, all else above them."""
    made = databank("sqlite", request)
    made.run("create table loose (id int primary key, body text)")
    made.insert("loose", [(1, ""), (2.5, ""), (4, ""), ("x", ""), (b"z", "")])
    yield made
    made.close()


async def test_keys_that_are_no_ids_are_rejected_once_and_hide_no_row_that_comes(loose: Databank) -> None:
    async with following(loose, "loose", on_bad_record="dead_letter") as tailed:
        assert await tailed.read() == [1, 4]
        loose.insert("loose", [(3, ""), (5, ""), (7.5, ""), (b"zz", "")])
        assert set(await tailed.reads(3) + await tailed.read()) == {3, 5}
        assert [(hole.first, hole.last) for hole in tailed.ledger.holes] == [(2, 2), (6, 7)]
        await tailed.restart()
        loose.insert("loose", [(6, ""), (8, "")])
        assert set(await tailed.reads(6) + await tailed.read()) == {6, 8}
        await asyncio.sleep(0.05)
        assert await tailed.read() == []
        assert sorted(tailed.rejected) == ["2.5", "7.5", "b'z'", "b'zz'", "x"]


async def test_after_the_latest_row_keys_that_are_no_ids_are_new_ones_only(loose: Databank) -> None:
    async with following(loose, "loose", on_bad_record="dead_letter", start="latest") as tailed:
        assert await tailed.read() == []
        loose.insert("loose", [(5, ""), (b"zz", "")])
        assert await tailed.reads(5) == [5]
        await asyncio.sleep(0.05)
        assert (await tailed.read(), tailed.rejected) == ([], ["b'zz'"])


async def test_after_a_snapshot_keys_that_are_no_ids_are_rejected_once_too(loose: Databank) -> None:
    config = stream("loose", mode="snapshot_then_tail", on_bad_record="dead_letter", max_parallel=8, page_size=1)
    async with open_source(loose.url) as source:
        *pieces, last = await source.plan(config, await source.describe(config))
        assert (pieces[-1].upper, last.lower) == (KeyPosition((4,)), KeyPosition((4,)))
        tailed = Following(source, config, last)
        await tailed.restart()
        loose.insert("loose", [(5, "")])
        assert (await tailed.read(), sorted(tailed.rejected)) == ([5], ["b'z'", "x"])
        await tailed.reader.close()


async def test_a_key_that_is_no_id_stops_a_stream_that_puts_nothing_aside(loose: Databank) -> None:
    async with following(loose, "loose") as tailed:
        with pytest.raises(EncodeError, match="row with key x: holds a text, which is no INT"):
            await tailed.read()


async def test_a_stream_that_stands_behind_all_ids_is_refused(loose: Databank) -> None:
    async with following(loose, "loose", on_bad_record="dead_letter") as tailed:
        tailed.checkpoint = replace(tailed.checkpoint, position=KeyPosition(("x",)))
        await tailed.restart()
        with pytest.raises(ConfigError, match="the key 'x', which stands above all integers"):
            await tailed.read()
