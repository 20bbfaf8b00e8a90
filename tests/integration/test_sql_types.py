"""Owns types: docs/types.toml says what becomes of each, and here every example of it is a column that is streamed
through Kafka and decoded; what has no form is refused by name."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pymysql
import pytest
import yaml

from producer.config import Config, load_config
from producer.errors import ConfigError, EncodeError
from producer.kafka import client_options
from producer.metrics import Metrics
from producer.proof import published_schemas
from producer.service import Service
from producer.sinks.dead_letters import SCHEMA
from producer.verify import Counts, verify
from tests.integration.kafka_rows import read_topic
from tests.integration.sql_reading import open_source, read, stream
from tests.sql import TABLES, Databank, databank

STATED = tomllib.loads((Path(__file__).resolve().parents[2] / "docs" / "types.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Example:
    """The column `name` of the type `sql`; `avro` and `value` are what a reader has of it."""

    name: str
    sql: str
    literal: str | None
    avro: str
    value: Any


def examples(dialect: str) -> list[Example]:
    found = [(row["avro"], example) for row in STATED[dialect]["types"] for example in row.get("examples", ())]
    return [
        Example(
            f"c{number}",
            example["sql"],
            example.get("literal"),
            example.get("avro", avro) + (" or null" if "literal" in example else ""),
            example["value"],
        )
        for number, (avro, example) in enumerate(found)
    ]


LETTER = fastavro.parse_schema(json.loads(json.dumps(SCHEMA)))


@pytest.fixture(scope="module")
def many(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kafka_bootstrap: str
) -> Iterator[tuple[str, Databank, Config]]:
    """A dialect, its database with its types, and a stream of the table ``many``, which is to be made."""
    dialect, folder = request.param, tmp_path_factory.mktemp("types")
    bank = databank(dialect, request, folder)
    set_up(bank, dialect)
    name = f"types-{uuid.uuid4().hex[:8]}"
    document = {
        "app": name,
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "checkpoints": {"type": "file", "path": str(folder / "state")},
        "sources": {"db": {"type": "sql", "url": bank.url}},
        "streams": [{"source": "db", "table": "many", "topic": name, "on_bad_record": "dead_letter"}],
    }
    path = folder / "producer.yaml"
    path.write_text(yaml.safe_dump(document))
    yield dialect, bank, load_config(path)
    tear_down(bank, dialect)
    bank.close()


async def streamed(config: Config) -> int:
    """Streams what there is; how many rows arrived."""
    (summary,) = await Service(config, metrics=Metrics(), run_id="test").run(once=True, stop=asyncio.Event())
    assert summary.error is None
    return summary.acked


def set_up(bank: Databank, dialect: str) -> None:
    tear_down(bank, dialect)
    for statement in STATED[dialect].get("setup", ()):
        bank.run(statement)


def tear_down(bank: Databank, dialect: str) -> None:
    for table in ("many", "typed"):
        bank.run(f"drop table if exists {table}")
    for statement in STATED[dialect].get("setup", ()):
        if made := re.match(r'create (type|domain) ("[^"]*"|\w+)', statement):
            bank.run(f"drop {made[1]} if exists {made[2]} cascade")


def shown_type(avro: Any) -> str:
    """A type as the documentation writes it."""
    if isinstance(avro, str):
        return avro
    if isinstance(avro, list):
        assert avro[0] == "null"
        return shown_type(avro[1]) + " or null"
    kind, logical = avro["type"], avro.get("logicalType")
    if kind == "array":
        return f"array of {shown_type(avro['items'])}"
    if kind == "enum":
        return f"enum({', '.join(avro['symbols'])})"
    if logical == "decimal":
        logical = f"decimal({avro['precision']}, {avro['scale']})"
    return f"{kind}, {logical}" if logical else str(kind)


def shown_value(value: Any) -> Any:
    """A decoded value as the documentation writes it."""
    match value:
        case list():
            return [shown_value(item) for item in value]
        case bytes():
            return "0x" + value.hex()
        case date() | datetime() | time():
            return value.isoformat()
        case Decimal():
            return f"{value:f}"
        case bool() | int() | float() | str():
            return "NaN as a number" if isinstance(value, float) and math.isnan(value) else value
    return "null" if value is None else str(value)


@pytest.mark.parametrize("many", TABLES, indirect=True)
async def test_a_type_becomes_what_the_documentation_says(many: tuple[str, Databank, Config]) -> None:
    """All examples of a dialect are columns of one table."""
    dialect, bank, config = many
    columns = examples(dialect)
    filled = [column for column in columns if column.literal is not None]
    values, nulls = ", ".join(str(column.literal) for column in filled), ", ".join("null" for _ in filled)
    bank.run("drop table if exists many")
    bank.run(f"create table many (id int primary key, {', '.join(f'{c.name} {c.sql}' for c in columns)})")
    bank.run(f"insert into many (id, {', '.join(c.name for c in filled)}) values (1, {values}), (2, {nulls})")
    assert await streamed(config) == 2
    records = await read_topic(config.kafka.bootstrap_servers, config.streams[0].topic)
    schemas = await published_schemas(client_options(config.kafka), config.state_topic)
    schema: Any = schemas[dict(records[0].headers)["avro.fingerprint"]]
    rows: list[Any] = [fastavro.schemaless_reader(io.BytesIO(record.value), schema, None) for record in records]
    first, second = sorted(rows, key=lambda row: int(row["id"]))
    types = {field["name"]: shown_type(field["type"]) for field in schema["fields"]}
    found = {
        (column.name, column.sql): (
            types[column.name],
            shown_value(first[column.name]),
            column.literal and second[column.name],
        )
        for column in columns
    }
    stated = {(column.name, column.sql): (column.avro, shown_value(column.value), None) for column in columns}
    assert found == stated
    assert (await verify(config, config.streams[0], Counts())).agrees


@pytest.mark.parametrize("many", TABLES, indirect=True)
async def test_a_value_without_a_form_is_a_dead_letter_that_names_its_column(
    many: tuple[str, Databank, Config], unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is in a row and a column of its own; all other values are null."""
    dialect, bank, config = many
    refused = [case for row in STATED[dialect]["types"] for case in row.get("refused", ())]
    if dialect == "mariadb":
        bank.run("set session sql_mode = ''")
    bank.run("drop table if exists many")
    columns = ", ".join(f"r{number} {case['sql']}" for number, case in enumerate(refused))
    bank.run(f"create table many (id int primary key, {columns})")
    for number, case in enumerate(refused):
        bank.run(f"insert into many (id, r{number}) values ({number}, {case['literal']})")
    bank.run("insert into many (id) values (1000)")
    (stream,) = config.streams
    config = config.model_copy(update={"streams": (stream.model_copy(update={"topic": unique, "name": unique}),)})
    assert await streamed(config) == len(refused) + 1
    letters: dict[int, Any] = {}
    for record in await read_topic(config.kafka.bootstrap_servers, f"{unique}.dlq"):
        letter: Any = fastavro.schemaless_reader(io.BytesIO(record.value), LETTER, None)
        letters[json.loads(letter["row"])["id"]] = letter
    for number, case in enumerate(refused):
        assert f"r{number}" in letters[number]["message"], case
        assert case["says"] in letters[number]["message"], case
    assert sorted(letters) == list(range(len(refused)))
    await verify_names_bad_rows(config, refused, monkeypatch)


async def verify_names_bad_rows(config: Config, refused: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the dead letters. Where none are looked for they are missing, each with its key, field and reason."""
    (stream,) = config.streams
    found = await verify(config, stream, Counts())
    assert found.agrees
    assert found.comparison.dead_lettered == len(refused)
    monkeypatch.setattr("producer.verify.source_side.NAMED", len(refused))
    monkeypatch.setattr("producer.verify.run.NAMED", len(refused))
    found = await verify(config, stream.model_copy(update={"on_bad_record": "fail"}), Counts())
    assert (found.comparison.missing, found.comparison.dead_lettered) == (len(refused), 0)
    names = {name.partition(" ")[0]: name for name in found.missing}
    for number, case in enumerate(refused):
        assert f"field r{number}" in names[f"id={number}"], case
        assert case["says"] in names[f"id={number}"], case


@pytest.fixture
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    found = databank(request.param, request)
    set_up(found, request.param)
    yield found
    tear_down(found, request.param)
    found.close()


@pytest.mark.parametrize(
    ("bank", "kind", "literal", "reason"),
    [
        ("postgres", "date[]", "'{2024-01-01,-infinity}'", "an infinite date"),
        ("mariadb", "date", "'0000-00-00'", "0000-00-00"),
        ("sqlite", "integer", "'abc'", "a text"),
    ],
    indirect=["bank"],
)
async def test_a_value_without_a_form_names_its_column_and_row(
    bank: Databank, kind: str, literal: str, reason: str
) -> None:
    if bank.mark == "`":
        bank.run("set session sql_mode = ''")
    bank.run(f"create table typed (id int primary key, v {kind})")
    bank.run(f"insert into typed values (7, {literal}), (1, null), (9, null)")
    with pytest.raises(EncodeError) as caught:
        await read(bank.url, stream("typed"))
    assert (caught.value.field, caught.value.key) == ("v", "7")
    assert reason in str(caught.value)
    assert "'v'" in str(caught.value)


async def test_a_column_without_a_type_is_refused_by_name_before_anything_is_read(postgres_dsn: str) -> None:
    settings = {"key": ["schemaname", "tablename", "attname", "inherited"], "columns": ["avg_width"]}
    async with open_source(postgres_dsn) as source:
        with pytest.raises(ConfigError, match="column 'most_common_vals' has the pseudo-type anyarray") as caught:
            await source.describe(stream("pg_catalog.pg_stats", key=settings["key"]))
        assert "exclude" in caught.value.hint
        assert "cast" in caught.value.hint
        assert (await source.describe(stream("pg_catalog.pg_stats", **settings))).schema.names[0] == "avg_width"


@pytest.mark.parametrize("bank", ["mariadb"], indirect=True)
async def test_a_value_without_a_form_leaves_no_connection_behind(bank: Databank) -> None:
    bank.run("create table typed (id int primary key, v time)")
    bank.run("insert into typed values (1, '24:00:00')")
    connections = "(select count(*) from information_schema.processlist where db = database())"
    bank.run(f"set @before = {connections}")
    with pytest.raises(EncodeError):
        await read(bank.url, stream("typed"))
    fail_on_others = f"begin not atomic if {connections} > @before then signal sqlstate '45000'; end if; end"
    async with asyncio.timeout(10):
        while True:  # the server sees the end of a connection a moment later
            try:
                return bank.run(fail_on_others)
            except pymysql.MySQLError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_a_numeric_without_precision_is_what_the_stream_asks_for(bank: Databank) -> None:
    bank.run("create table typed (id int primary key, v numeric)")
    bank.run("insert into typed values (1, 12345678901234567890.123456789)")
    table = await read(bank.url, stream("typed", decimal="38,9"))
    assert table.column("v").to_pylist() == [Decimal("12345678901234567890.123456789")]
    bank.run("insert into typed values (2, 0.1234567891)")
    with pytest.raises(EncodeError, match="more digits"):
        await read(bank.url, stream("typed", decimal="38,9"))
    with pytest.raises(ConfigError, match="precision and scale"):
        await read(bank.url, stream("typed", decimal="9,38"))


@pytest.mark.parametrize("bank", ["postgres", "mariadb"], indirect=True)
async def test_comments_of_tables_and_columns_are_kept(bank: Databank) -> None:
    if bank.mark == '"':
        bank.run("create table typed (id int primary key)")
        bank.run("comment on table typed is 'all of them'")
        bank.run("comment on column typed.id is 'its number'")
    else:
        bank.run("create table typed (id int primary key comment 'its number') comment 'all of them'")
    async with open_source(bank.url) as source:
        dataset = await source.describe(stream("typed"))
    assert dataset.comment == "all of them"
    assert dataset.schema.field("id").metadata[b"comment"] == b"its number"
