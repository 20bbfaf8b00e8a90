"""Owns the claims about the search for deleted rows: what it finds is, each time, exactly what the topic has and the
source has not; and after the first search it reads what has changed."""

from __future__ import annotations

import contextlib
import io
import random
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from producer import deletes
from producer.config import Config
from producer.deletes import DeleteSearch
from producer.encoding.schema import derive_key_schema
from producer.errors import SourceUnavailableError, TransientError
from producer.keyspool import KeySpool
from producer.model import KeyDigest, KeyPage, Position
from producer.sources.sql.keys import SqlKeys
from tests.integration.sql_reading import open_source, stream
from tests.sql import Databank, databank

PARTITIONS = 3
PREFIX = b"\0\0\0\0\7"

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Kind:
    """A table with some kind of key: the columns of a database's CREATE TABLE, and the n-th key."""

    columns: dict[str, str]
    names: tuple[str, ...]
    framed: bool = False

    def key(self, n: int) -> Key:
        if self.names == ("word", "n"):
            return (("a", "B", "ä'", "a,1", "")[n % 5], n // 5)
        return (str(uuid.UUID(int=(n * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128)),) if "uid" in self.names else (n,)


IDS = Kind(dict.fromkeys(("postgres", "sqlite", "mariadb"), "id bigint primary key"), ("id",), framed=True)
PAIRS = Kind(
    dict.fromkeys(("sqlite", "mariadb"), "word varchar(9) not null, n int not null, primary key (word, n)")
    | {"postgres": 'word text collate "C", n int, primary key (word, n)'},
    ("word", "n"),
)
UIDS = Kind({"postgres": "uid uuid primary key"}, ("uid",))
CASES = [("postgres", IDS), ("postgres", PAIRS), ("postgres", UIDS), ("sqlite", PAIRS), ("mariadb", PAIRS)]


class Counted(SqlKeys):
    """Counts what is read, and fails at the call with a number."""

    read = calls = 0
    fails_at: int | None = None

    @classmethod
    def called(cls) -> None:
        cls.calls += 1
        if cls.calls == cls.fails_at:
            raise SourceUnavailableError("as the test wants it")

    async def fetch(self, lower: Position | None, upper: Position | None, limit: int) -> KeyPage:
        page = await super().fetch(lower, upper, limit)
        self.called()
        Counted.read += page.batch.num_rows
        return page

    async def digest(self, lower: Position | None, upper: Position | None) -> KeyDigest | None:
        self.called()
        return await super().digest(lower, upper)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of a few keys, and their reading counted."""
    monkeypatch.setattr(deletes, "RANGE_KEYS", 4)
    monkeypatch.setattr("producer.sources.sql.SqlKeys", Counted)
    Counted.read, Counted.calls, Counted.fails_at = 0, 0, None


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'-'.join(case[1].names)}")
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Databank, Kind]]:
    dialect, kind = request.param
    bank = databank(dialect, request)
    bank.run(f"create table t ({kind.columns[dialect]})")
    yield bank, kind
    bank.run("drop table t")
    bank.close()


@pytest.fixture
def ids(postgres_dsn: str) -> Iterator[Databank]:
    from tests.sql import postgres

    bank = postgres(postgres_dsn)
    bank.run("create table t (id bigint primary key)")
    yield bank
    bank.run("drop table t")
    bank.close()


@dataclass
class Topic:
    """A topic with keys, as a stream and its compaction would leave it: written to in transactions."""

    bootstrap: str
    name: str
    schema: Any
    names: tuple[str, ...]
    framed: bool
    keys: set[Key] = field(default_factory=set)

    def __post_init__(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        admin.create_topics([NewTopic(self.name, PARTITIONS, 1)])[self.name].result(30)
        self._producer = Producer({"bootstrap.servers": self.bootstrap, "transactional.id": self.name})
        self._producer.init_transactions(30)

    def write(self, *records: tuple[Key, bool], commit: bool = True) -> None:
        """Keys with values, or as tombstones."""
        self._producer.begin_transaction()
        for key, gone in records:
            text = io.BytesIO()
            fastavro.schemaless_writer(text, self.schema, dict(zip(self.names, key, strict=True)))
            data = (PREFIX if self.framed else b"") + text.getvalue()
            place = sum(data) % PARTITIONS  # one key, one partition
            self._producer.produce(self.name, None if gone else b"value", data, place)
            if commit:
                (self.keys.discard if gone else self.keys.add)(key)
        if commit:
            self._producer.commit_transaction(30)
        else:
            self._producer.flush(30)
            self._producer.abort_transaction(30)


@dataclass
class Case:
    bank: Databank
    kind: Kind
    topic: Topic
    search: DeleteSearch
    rows: set[Key] = field(default_factory=set)

    def insert(self, keys: set[Key]) -> None:
        if keys:
            self.bank.insert("t", sorted(keys))
        self.rows |= keys

    def delete(self, keys: set[Key]) -> None:
        names = self.kind.names
        for key in keys:
            values = (str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'" for value in key)
            self.bank.run(
                "delete from t where " + " and ".join(f"{n} = {v}" for n, v in zip(names, values, strict=True))
            )
        self.rows -= keys

    async def find(self) -> set[Key]:
        found = await self.search.find()
        return set() if found is None else {tuple(row.values()) for row in found.to_pylist()}

    async def finds_what_is_gone(self) -> set[Key]:
        """What was found, which is right."""
        found = await self.find()
        assert found == self.topic.keys - self.rows
        return found


@contextlib.asynccontextmanager
async def searching(bank: Databank, kind: Kind, bootstrap: str, name: str, **settings: Any) -> AsyncIterator[Case]:
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": bootstrap},
            "sources": {"db": {"type": "sql", "url": bank.url}},
            "schema_registry": {"url": "http://localhost:1"} if kind.framed else None,
            "streams": [{"source": "db", "table": "t", "topic": name, **settings}],
        }
    )
    async with open_source(bank.url) as source:
        dataset = await source.describe(stream("t", **settings))
        topic = Topic(bootstrap, name, derive_key_schema(dataset), kind.names, kind.framed)
        search = DeleteSearch(config, config.streams[0], source, dataset)
        yield Case(bank, kind, topic, search)
        await search.close()


@pytest.mark.timeout(120)
async def test_each_search_finds_exactly_what_the_topic_has_and_the_source_has_not(
    case: tuple[Databank, Kind], kafka_bootstrap: str, unique: str
) -> None:
    chance = random.Random(8)
    everything = [case[1].key(n) for n in range(60)]

    def some(keys: set[Key], most: int) -> set[Key]:
        there = sorted(keys)
        return set(chance.sample(there, min(len(there), chance.randint(0, most))))

    found_any = 0
    async with searching(*case, kafka_bootstrap, unique) as it:
        it.insert(set(everything[::2]))
        for turn in range(10):
            it.topic.write(*((key, False) for key in some(it.rows, 12)))  # what a tail has read ...
            it.delete(some(it.rows, 3))  # ... and some of it is gone when it is searched for
            it.insert(some(set(everything) - it.rows, 3))  # keys come back, too
            if turn == 6:  # most of the table
                it.delete(some(it.rows, 1000))
            if turn % 2:
                Counted.fails_at = Counted.calls + chance.randint(2, 12)
                with contextlib.suppress(SourceUnavailableError):
                    await it.find()
                Counted.fails_at = None
            found = await it.finds_what_is_gone()
            arrive = turn % 3 > 0  # or their transaction is aborted
            it.topic.write(*((key, True) for key in found), commit=arrive)
            found_any += len(found) if arrive else 0
    assert found_any > 5


@pytest.mark.timeout(60)
async def test_a_search_after_the_first_reads_new_records_and_the_keys_of_the_ranges_that_changed(
    ids: Databank, kafka_bootstrap: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[bytes] = []
    record = KeySpool.record

    def counted(spool: KeySpool, more: Sequence[tuple[bytes, bool]]) -> None:
        records.extend(key for key, _ in more)
        record(spool, more)

    monkeypatch.setattr(KeySpool, "record", counted)
    async with searching(ids, IDS, kafka_bootstrap, unique) as it:
        it.insert({(n,) for n in range(1, 101)})
        it.topic.write(*((key, False) for key in it.rows))
        assert await it.finds_what_is_gone() == set()
        assert (len(records), Counted.read) == (100, 100)
        it.topic.write(((1,), False))
        assert await it.finds_what_is_gone() == set()
        assert (len(records), Counted.read) == (101, 100)
        it.delete({(10,), (50,)})
        assert await it.finds_what_is_gone() == {(10,), (50,)}
        assert Counted.read == 100 + 2 * 3
        it.delete({(n,) for n in range(20, 80)})
        await it.finds_what_is_gone()
        before = Counted.calls
        await it.finds_what_is_gone()  # the ranges that are empty have gone
        assert Counted.calls - before == 12


@pytest.mark.timeout(60)
async def test_a_key_that_comes_and_goes_between_two_searches_is_found(
    ids: Databank, kafka_bootstrap: str, unique: str
) -> None:
    async with searching(ids, IDS, kafka_bootstrap, unique) as it:
        it.insert({(n,) for n in range(10)})
        it.topic.write(*((key, False) for key in it.rows))
        await it.finds_what_is_gone()
        it.topic.write(((77,), False))
        assert await it.finds_what_is_gone() == {(77,)}


@pytest.mark.timeout(60)
async def test_a_key_that_was_never_sent_gets_no_tombstone(ids: Databank, kafka_bootstrap: str, unique: str) -> None:
    async with searching(ids, IDS, kafka_bootstrap, unique) as it:
        it.insert({(n,) for n in range(10)})
        it.topic.write(((1,), False))
        await it.finds_what_is_gone()
        it.delete({(5,)})
        assert await it.find() == set()


@pytest.mark.timeout(60)
async def test_a_row_that_no_longer_fits_the_condition_is_gone(
    ids: Databank, kafka_bootstrap: str, unique: str
) -> None:
    async with searching(ids, IDS, kafka_bootstrap, unique, where="id < 5") as it:
        it.insert({(n,) for n in range(5)})
        it.topic.write(*((key, False) for key in it.rows))
        assert await it.find() == set()
        ids.run("update t set id = 9 where id = 4")
        assert await it.find() == {(4,)}


@pytest.mark.timeout(60)
async def test_a_topic_made_anew_is_read_from_its_beginning(ids: Databank, kafka_bootstrap: str, unique: str) -> None:
    async with searching(ids, IDS, kafka_bootstrap, unique) as it:
        it.topic.write(*(((n,), False) for n in range(20)))
        assert len(await it.find()) == 20
        admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
        admin.delete_topics([unique])[unique].result(30)
        it.topic = Topic(kafka_bootstrap, unique, it.topic.schema, it.topic.names, it.topic.framed)
        it.topic.write(((3,), False))
        assert await it.find() == {(3,)}


@pytest.mark.timeout(60)
async def test_a_spool_that_cannot_be_written_is_told_and_begun_anew(
    ids: Databank, kafka_bootstrap: str, unique: str
) -> None:
    async with searching(ids, IDS, kafka_bootstrap, unique) as it:
        it.topic.write(((1,), False))
        assert await it.find() == {(1,)}
        assert it.search._spool is not None
        it.search._spool.close()
        with pytest.raises(TransientError, match="temporary file"):
            await it.find()
        assert await it.find() == {(1,)}
