"""Owns the claims about tables that change, while a stream runs and between runs: what is compatible goes on with a new
schema, and what is not stops before anything is sent with it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import pytest
import yaml
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from producer.config import Config, load_config
from producer.errors import ConfigError, SchemaIncompatibleError
from producer.kafka import client_options
from producer.metrics import Metrics
from producer.proof import published_schemas
from producer.service import Service, StreamSummary
from tests.integration.kafka_rows import read_topic
from tests.sql import TABLES, Databank, databank


@dataclass
class Drifting:
    """A table ``t`` and a stream of it that follows."""

    bank: Databank
    config: Config
    registry: str | None
    service: Service | None = None
    task: asyncio.Task[list[StreamSummary]] | None = None
    done: list[StreamSummary] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return self.config.streams[0].topic

    def insert(self, *rows: tuple[Any, ...]) -> None:
        self.bank.insert("t", rows)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The stream runs inside, and is drained at the end; then `done` has its summary."""
        stop = asyncio.Event()
        self.service = Service(self.config, metrics=Metrics(), run_id="test")
        self.task = asyncio.create_task(self.service.run(once=False, stop=stop))
        try:
            yield
        finally:
            stop.set()
            self.done = await asyncio.wait_for(self.task, 30)

    async def arrived(self, rows: int) -> None:
        """Waits until so many rows have been acknowledged since the run began, or the stream has failed."""
        assert self.service is not None
        assert self.task is not None
        async with asyncio.timeout(30):
            while not self.task.done():
                status = next(iter(self.service.streams.values()), None)
                if status is not None and (status.rows_acked >= rows or status.state == "failed"):
                    return
                await asyncio.sleep(0.02)

    async def run(self) -> StreamSummary:
        """One run to the end of what is there."""
        (summary,) = await Service(self.config, metrics=Metrics(), run_id="test").run(once=True, stop=asyncio.Event())
        return summary

    async def values(self, *, newest: bool = False) -> list[dict[str, Any]]:
        """The topic's values by id; each as it was written, or as a reader with the newest schema gets it."""
        records = await read_topic(self.config.kafka.bootstrap_servers, self.topic)
        decode = self._with_registry if self.registry else await self._with_headers()
        return sorted(await asyncio.to_thread(decode, records, newest), key=lambda row: int(row["id"]))

    def _with_registry(self, records: Sequence[Any], newest: bool) -> list[dict[str, Any]]:
        with SchemaRegistryClient({"url": self.registry}) as client:
            latest = client.get_latest_version(f"{self.topic}-value").schema if newest else None
            read = AvroDeserializer(client, latest)
            where = SerializationContext(self.topic, MessageField.VALUE)
            return [read(record.value, where) for record in records]

    async def _with_headers(self) -> Callable[[Sequence[Any], bool], list[dict[str, Any]]]:
        schemas = await published_schemas(client_options(self.config.kafka), self.config.state_topic)

        def decode(records: Sequence[Any], newest: bool) -> list[dict[str, Any]]:
            written = [schemas[dict(record.headers)["avro.fingerprint"]] for record in records]
            latest = written[max(range(len(records)), key=lambda i: records[i].timestamp)] if newest else None
            values: Any = [
                fastavro.schemaless_reader(io.BytesIO(record.value), schema, latest)
                for record, schema in zip(records, written, strict=True)
            ]
            return list(values)

        return decode


@pytest.fixture(params=TABLES)
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    found = databank(request.param, request)
    yield found
    found.close()


@pytest.fixture(params=["registry", "no registry"])
def registry(request: pytest.FixtureRequest) -> str | None:
    return str(request.getfixturevalue("registry_url")) if request.param == "registry" else None


@pytest.fixture
def drifting(bank: Databank, registry: str | None, kafka_bootstrap: str, unique: str, tmp_path: Path) -> Drifting:
    return stream_of(bank, registry, kafka_bootstrap, unique, tmp_path)


def stream_of(bank: Databank, registry: str | None, bootstrap: str, name: str, folder: Path, **more: Any) -> Drifting:
    bank.run("drop table if exists t")
    bank.run(f"create table t (id {integer(bank)} primary key, a text, n {integer(bank)})")
    document = {
        "app": name,
        "kafka": {"bootstrap_servers": bootstrap},
        "checkpoints": {"type": "file", "path": str(folder / "checkpoints")},
        "sources": {"db": {"type": "sql", "url": bank.url}},
        "streams": [
            {"source": "db", "table": "t", "topic": name, "mode": "snapshot_then_tail", "poll_interval_s": 0.05} | more
        ],
        **({"schema_registry": {"url": registry}} if registry else {}),
    }
    (folder / "producer.yaml").write_text(yaml.safe_dump(document))
    return Drifting(bank, load_config(folder / "producer.yaml"), registry)


def integer(bank: Databank) -> str:
    return "integer" if bank.url.startswith("sqlite") else "int"


def retype(bank: Databank, column: str, kind: str) -> None:
    """Gives a column another type; SQLite's way is a new table in the place of the old one."""
    match bank.url.partition(":")[0]:
        case "sqlite":
            rest = [name for name in ("a", "n") if name != column]
            bank.run("alter table t rename to old")
            bank.run(f"create table t (id integer primary key, {rest[0]} text, {column} {kind})")
            bank.run(f"insert into t select id, {rest[0]}, {column} from old")
            bank.run("drop table old")
        case "mysql" | "mariadb":
            bank.run(f"alter table t modify {column} {kind}")
        case _:
            bank.run(f"alter table t alter column {column} type {kind} using {column}::{kind}")


def forbid_nulls(bank: Databank, column: str, kind: str) -> None:
    if bank.url.startswith("postgres"):
        bank.run(f"alter table t alter column {column} set not null")
    else:
        retype(bank, column, f"{kind} not null")


async def assert_stopped_by(drifting: Drifting, column: str) -> None:
    """The stream has failed, says which column it was, and sent nothing after the first row."""
    (summary,) = drifting.done
    assert summary.state == "failed"
    assert f"{column!r}" in str(summary.error)
    assert [row["id"] for row in await drifting.values()] == [1]


async def test_a_tail_goes_on_with_columns_added_dropped_renamed_and_widened(drifting: Drifting) -> None:
    bank = drifting.bank
    drifting.insert((1, "one", 1), (2, None, 2))
    async with drifting.running():
        await drifting.arrived(2)
        bank.run("alter table t add column b varchar(20)")
        drifting.insert((3, "three", 3, "new"))
        await drifting.arrived(3)
        bank.run("alter table t drop column a")
        drifting.insert((4, 4, "four"))
        await drifting.arrived(4)
        bank.run("alter table t rename column b to c")
        drifting.insert((5, 5, "five"))
        await drifting.arrived(5)
        bank.run("alter table t add column w float")
        drifting.insert((6, 6, "six", 0.5))
        await drifting.arrived(6)
    assert drifting.done[0].error is None
    assert await drifting.values() == [
        {"id": 1, "a": "one", "n": 1},
        {"id": 2, "a": None, "n": 2},
        {"id": 3, "a": "three", "n": 3, "b": "new"},
        {"id": 4, "n": 4, "b": "four"},
        {"id": 5, "n": 5, "c": "five"},
        {"id": 6, "n": 6, "c": "six", "w": 0.5},
    ]
    newest = await drifting.values(newest=True)
    assert [(row["id"], row["c"], row["w"]) for row in newest] == [
        (1, None, None), (2, None, None), (3, None, None), (4, None, None), (5, "five", None), (6, "six", 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize("bank", ["postgres", "mariadb"], indirect=True)
async def test_a_column_is_widened_while_a_tail_runs(drifting: Drifting) -> None:
    drifting.insert((1, "one", 1))
    async with drifting.running():
        await drifting.arrived(1)
        retype(drifting.bank, "n", "bigint")
        drifting.insert((2, "two", 2**40))
        await drifting.arrived(2)
    assert drifting.done[0].error is None
    assert [row["n"] for row in await drifting.values()] == [1, 2**40]
    assert [row["n"] for row in await drifting.values(newest=True)] == [1, 2**40]


async def test_a_column_that_changes_its_kind_while_a_tail_runs_stops_it_before_anything_is_sent(
    drifting: Drifting,
) -> None:
    drifting.insert((1, "1", 1))
    async with drifting.running():
        await drifting.arrived(1)
        retype(drifting.bank, "n", "varchar(20)")
        drifting.insert((2, "two", "x"))
        await drifting.arrived(2)
    await assert_stopped_by(drifting, "n")


@pytest.mark.parametrize(
    "kinds",
    [
        ("bigint", "int"),
        ("float(53)", "float(24)"),
        ("numeric(10, 2)", "numeric(12, 2)"),
        ("numeric(10, 2)", "numeric(10, 3)"),
    ],
)
@pytest.mark.parametrize("bank", ["postgres", "mariadb"], indirect=True)
async def test_a_column_that_gets_another_width_or_precision_stops_the_tail_before_anything_is_sent(
    drifting: Drifting, kinds: tuple[str, str]
) -> None:
    retype(drifting.bank, "n", kinds[0])
    drifting.insert((1, "one", 1))
    async with drifting.running():
        await drifting.arrived(1)
        retype(drifting.bank, "n", kinds[1])
        drifting.insert((2, "two", 2))
        await drifting.arrived(2)
    await assert_stopped_by(drifting, "n")


async def test_a_column_that_may_no_longer_be_null_stops_the_tail_before_anything_is_sent(drifting: Drifting) -> None:
    drifting.insert((1, "one", 1))
    async with drifting.running():
        await drifting.arrived(1)
        forbid_nulls(drifting.bank, "n", integer(drifting.bank))
        drifting.insert((2, "two", 2))
        await drifting.arrived(2)
    await assert_stopped_by(drifting, "n")


async def test_a_column_that_may_be_null_from_now_on_goes_on(drifting: Drifting) -> None:
    bank = drifting.bank
    forbid_nulls(bank, "n", integer(bank))
    drifting.insert((1, "one", 1))
    async with drifting.running():
        await drifting.arrived(1)
        if bank.url.startswith("postgres"):
            bank.run("alter table t alter column n drop not null")
        else:
            retype(bank, "n", integer(bank))
        drifting.insert((2, "two", None))
        await drifting.arrived(2)
    assert drifting.done[0].error is None
    assert [row["n"] for row in await drifting.values(newest=True)] == [1, None]


async def test_whole_numbers_that_become_floating_ones_are_read_as_the_table_has_them(drifting: Drifting) -> None:
    bank, great = drifting.bank, 2**53 + 1
    retype(bank, "n", "bigint")
    drifting.insert((1, "one", great))
    async with drifting.running():
        await drifting.arrived(1)
        retype(bank, "n", "double precision")
        bank.run("insert into t (id, n) values (2, 0.5)")
        bank.run("insert into t (id, n) select 3, n from t where id = 1")
        await drifting.arrived(3)
    assert drifting.done[0].error is None
    assert [row["n"] for row in await drifting.values()] == [great, 0.5, float(great)]
    assert [row["n"] for row in await drifting.values(newest=True)] == [float(great), 0.5, float(great)]


async def test_a_late_row_has_the_columns_that_came_before_it(
    bank: Databank, registry: str | None, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    drifting = stream_of(bank, registry, kafka_bootstrap, unique, tmp_path, poll_interval_s=1)
    drifting.insert((1, "one", 1), (3, "three", 3), (5, "five", 5))
    async with drifting.running():
        await drifting.arrived(3)
        bank.run("alter table t add column c varchar(20)")
        drifting.insert((4, "four", 4, "precious"))  # both before the next poll
        await drifting.arrived(4)
    assert drifting.done[0].error is None
    values = await drifting.values()
    assert [row for row in values if row["id"] == 4] == [{"id": 4, "a": "four", "n": 4, "c": "precious"}]


async def test_between_runs_a_new_column_makes_a_new_version_of_the_schema(drifting: Drifting) -> None:
    drifting.insert((1, "one", 1))
    assert (await drifting.run()).state == "complete"
    drifting.bank.run("alter table t add column b varchar(20)")
    drifting.insert((2, "two", 2, "new"))
    summary = await drifting.run()
    assert summary.error is None
    assert await drifting.values() == [{"id": 1, "a": "one", "n": 1}, {"id": 2, "a": "two", "n": 2, "b": "new"}]
    assert [row["b"] for row in await drifting.values(newest=True)] == [None, "new"]


async def test_between_runs_a_column_without_nulls_is_refused_before_anything_is_sent(drifting: Drifting) -> None:
    drifting.insert((1, "one", 1))
    assert (await drifting.run()).state == "complete"
    drifting.bank.run("alter table t add column b varchar(20) not null default 'x'")
    drifting.insert((2, "two", 2, "new"))
    with pytest.raises(SchemaIncompatibleError, match="field 'b' has no counterpart and no default"):
        await drifting.run()
    assert [row["id"] for row in await drifting.values()] == [1]


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_a_label_added_to_an_enum_while_a_tail_runs_arrives(drifting: Drifting) -> None:
    bank = drifting.bank
    bank.run("drop type if exists mood cascade")
    bank.run("create type mood as enum ('sad', 'glad')")
    bank.run("alter table t add column m mood")
    drifting.insert((1, "one", 1, "sad"))
    async with drifting.running():
        await drifting.arrived(1)
        bank.run("alter type mood add value 'so_so'")
        drifting.insert((2, "two", 2, "so_so"))
        await drifting.arrived(2)
    assert drifting.done[0].error is None
    assert [row["m"] for row in await drifting.values()] == ["sad", "so_so"]


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_a_column_that_is_not_read_may_come_and_go(
    bank: Databank, registry: str | None, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    drifting = stream_of(bank, registry, kafka_bootstrap, unique, tmp_path, columns=["id", "a"])
    drifting.insert((1, "one", 1))
    async with drifting.running():
        await drifting.arrived(1)
        bank.run("alter table t drop column n")
        drifting.insert((2, "two"))
        await drifting.arrived(2)
    assert drifting.done[0].error is None
    values = await drifting.values()
    assert json.dumps(values) == json.dumps([{"id": 1, "a": "one"}, {"id": 2, "a": "two"}])


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_a_table_that_changes_all_the_time_neither_holds_the_stream_for_ever_nor_loses_rows(
    bank: Databank, registry: str | None, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    drifting = stream_of(bank, registry, kafka_bootstrap, unique, tmp_path, page_size=50)
    rows = [(n, "one", n) for n in range(1, 2001)]
    drifting.insert(*rows)
    quiet = threading.Event()

    def change() -> None:
        for _ in range(1500):  # a dropped column counts towards the 1,600 that a table may have
            if quiet.is_set():
                return
            bank.run("alter table t add column more text")
            bank.run("alter table t drop column more")

    changing = asyncio.create_task(asyncio.to_thread(change))
    try:
        async with asyncio.timeout(60):
            with contextlib.suppress(ConfigError, SchemaIncompatibleError):  # it may change while it is described
                await drifting.run()
    finally:
        quiet.set()
        await changing
    assert (await drifting.run()).state == "complete"
    assert {row["id"] for row in await drifting.values()} == {n for n, *_ in rows}
