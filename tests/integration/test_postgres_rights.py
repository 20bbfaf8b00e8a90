"""What a PostgreSQL user may do who has only some of the rights: everything that these allow, and the rest by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from producer.errors import AuthenticationError, ConfigError, PermanentError
from producer.model import Between
from producer.sources.sql import postgres as dialect
from tests.integration.sql_reading import open_source, read, stream
from tests.integration.test_late_rows import following, transaction
from tests.sql import Databank, postgres

XMIN = 'GRANT SELECT (xmin) ON "public"."secrets" TO some_rights'


@pytest.fixture(scope="module")
def banks(postgres_dsn: str) -> Iterator[tuple[Databank, Databank]]:
    """The owner's, and that of a user who may read two columns of a table."""
    owner = postgres(postgres_dsn)
    owner.run("create role some_rights login")
    owner.run("create table secrets (id int primary key, pub text, sec text)")
    owner.run("grant select (id, pub) on secrets to some_rights")
    parts = urlsplit(postgres_dsn)
    user = postgres(parts._replace(netloc=f"some_rights@{parts.hostname}:{parts.port}").geturl())
    yield owner, user
    user.close()
    owner.run("drop owned by some_rights cascade")
    owner.run("drop role some_rights")
    owner.close()


@pytest.fixture
def rows(banks: tuple[Databank, Databank]) -> tuple[Databank, Databank]:
    owner, user = banks
    owner.run("truncate secrets")
    owner.run("insert into secrets select n, 'p', 's' from generate_series(1, 100) n")
    owner.run("analyze secrets")
    return owner, user


PUBLIC: dict[str, Any] = {"columns": ["id", "pub"]}


async def test_a_snapshot_of_the_columns_that_may_be_read(
    rows: tuple[Databank, Databank], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With splits from a sample of the table (TABLESAMPLE), and the planner's estimate."""
    monkeypatch.setattr(dialect, "_SAMPLE_FROM_ROWS", 10)
    monkeypatch.setattr(dialect, "_SAMPLE_ROWS", 90)
    _, user = rows
    config = stream("secrets", page_size=10, max_parallel=3, **PUBLIC)
    async with open_source(user.url) as source:
        dataset = await source.describe(config)
        assert dataset.rows_estimate == 100
        assert len(await source.plan(config, dataset)) == 3
        assert (await source.replay(config, dataset, "replay-1", Between("pub", "p", "p"))).upper is not None
        keys = await source.keys(config)
        assert (await keys.fetch(None, None, 1000)).digest == await keys.digest(None, None)
        await keys.aclose()
    assert (await read(user.url, config)).num_rows == 100


@pytest.mark.parametrize("settings", [{"mode": "tail", "start": "latest"}, {"mode": "snapshot_then_tail"}])
async def test_a_tail_of_the_columns_that_may_be_read_finds_late_rows_by_their_ids(
    rows: tuple[Databank, Databank], settings: dict[str, str]
) -> None:
    owner, user = rows
    with capture_logs() as logs:
        async with following(user, "secrets", page_size=7, **settings, **PUBLIC) as tailed:
            with transaction(owner, "insert into secrets values (102, 'p', 's')") as late:
                owner.run("insert into secrets values (101, 'p', 's'), (103, 'p', 's')")
                assert await tailed.read() == [101, 103]
                late.commit()
                assert await tailed.reads(102) == [102]
    (told,) = {(log["event"], log["hint"]) for log in logs if "xmin" in log["event"]}
    assert told == ("late commits are looked for by missing ids alone: this user may not read xmin", XMIN)


async def test_the_grant_that_is_told_is_all_that_a_tail_lacks(rows: tuple[Databank, Databank]) -> None:
    owner, user = rows
    owner.run(XMIN)
    with capture_logs() as logs:
        async with following(user, "secrets", start="latest", **PUBLIC) as tailed:
            assert tailed.ledger.passages  # to be looked through by transaction number
            assert not [log for log in logs if "xmin" in log["event"]]
            await tailed.reader.close()
            owner.run("revoke select (xmin) on secrets from some_rights")
            await tailed.restart()
            with pytest.raises(ConfigError, match="looked for by xmin") as caught:
                await tailed.reads(101)
            assert caught.value.hint == XMIN


async def test_a_column_that_may_not_be_read_is_refused_with_the_grant_that_helps(
    rows: tuple[Databank, Databank],
) -> None:
    _, user = rows
    async with open_source(user.url) as source:
        with pytest.raises(ConfigError, match="column 'sec' may not be read") as caught:
            await source.describe(stream("secrets"))
        assert 'GRANT SELECT ("sec") ON "public"."secrets" TO some_rights' in caught.value.message
        with pytest.raises(AuthenticationError, match="permission denied") as denied:
            await source.describe(stream("secrets", where="sec = 's'", **PUBLIC))
        assert "grant SELECT" in denied.value.hint


async def test_a_right_that_is_taken_away_ends_the_stream_by_name(rows: tuple[Databank, Databank]) -> None:
    owner, user = rows
    config = stream("secrets", page_size=10, **PUBLIC)
    async with open_source(user.url) as source:
        dataset = await source.describe(config)
        reader = await source.reader(config, dataset, (await source.plan(config, dataset))[0])
        page = await reader.fetch(None, 10)
        owner.run("revoke select (pub) on secrets from some_rights")
        try:
            with pytest.raises(AuthenticationError, match="permission denied for table secrets"):
                await reader.fetch(page.position, 10)
        finally:
            owner.run("grant select (pub) on secrets to some_rights")
            await reader.close()


async def test_a_view_needs_no_rights_on_its_table_and_says_so_where_it_does(rows: tuple[Databank, Databank]) -> None:
    owner, user = rows
    owner.run("create view shown as select id, pub from secrets where id > 90")
    owner.run("create view asking with (security_invoker) as select id, sec from secrets")
    owner.run("grant select on shown, asking to some_rights")
    assert (await read(user.url, stream("shown", key=["id"]))).num_rows == 10
    with pytest.raises(AuthenticationError, match="permission denied for table secrets"):
        await read(user.url, stream("asking", key=["id"]))
    owner.run("drop view shown, asking")


async def test_row_level_security_is_told(rows: tuple[Databank, Databank]) -> None:
    owner, user = rows
    owner.run("create policy few on secrets for select to some_rights using (id <= 30)")
    owner.run("alter table secrets enable row level security")
    try:
        with capture_logs() as logs:
            found = await read(user.url, stream("secrets", page_size=7, max_parallel=3, **PUBLIC))
        assert found.num_rows == 30
        assert [log["event"] for log in logs] == ["row-level security may hide rows of the table from this user"]
        with capture_logs() as logs:
            assert (await read(owner.url, stream("secrets"))).num_rows == 100
        assert not logs
    finally:
        owner.run("alter table secrets disable row level security")
        owner.run("drop policy few on secrets")


async def test_an_estimate_that_fails_stops_no_stream(
    rows: tuple[Databank, Databank], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise PermanentError("EXPLAIN can not be issued")

    monkeypatch.setattr(dialect.PostgresSession, "estimate", fail)
    _, user = rows
    config = stream("secrets", **PUBLIC)
    with capture_logs() as logs:
        async with open_source(user.url) as source:
            dataset = await source.describe(config)
            assert dataset.rows_estimate is None
            assert (await source.plan(config, dataset))[-1].upper is not None
    assert [log["event"] for log in logs] == ["the number of rows cannot be estimated"]
    assert (await read(user.url, config)).num_rows == 100
