"""Owns types: each database's own types as they come out of the source, and what is refused by name."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from producer.errors import ConfigError, EncodeError
from tests.integration.sql_reading import open_source, read, stream
from tests.sql import Databank, databank

UTC = dt.UTC
UTC_US = pa.timestamp("us", tz="UTC")
LOWER = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
UPPER = LOWER.upper()
DIGITS = "1.2300000000000000000000000000000000000000001"
UUID = {"avro.logical": "uuid"}
JSON = {"avro.logical": "json"}
US = pa.timestamp("us")

# type, literal, Arrow type, value, metadata beside sql_type
POSTGRES: list[tuple[str, str, pa.DataType, Any, dict[str, str]]] = [
    ("smallint", "-32768", pa.int16(), -32768, {}),
    ("bigint", "9223372036854775807", pa.int64(), 2**63 - 1, {}),
    ("real", "'NaN'", pa.float32(), "nan", {}),
    ("double precision", "'-Infinity'", pa.float64(), float("-inf"), {}),
    ("numeric", DIGITS, pa.string(), DIGITS, {}),
    ("numeric(12,2)", "-0.10", pa.decimal128(12, 2), Decimal("-0.10"), {}),
    ("numeric(3,5)", "0.00123", pa.decimal128(5, 5), Decimal("0.00123"), {}),
    ("numeric(2,-3)", "12345", pa.decimal128(5, 0), Decimal(12000), {}),
    ("numeric(60,10)", "12345678901234567890123456789012345678901234567890.5", pa.decimal256(60, 10),
     Decimal("12345678901234567890123456789012345678901234567890.5"), {}),
    ("numeric(90,2)", "1.50", pa.string(), "1.50", {}),
    ("numeric(10,2)[]", "array[1.5, null, -2]", pa.list_(pa.decimal128(10, 2)),
     [Decimal("1.50"), None, Decimal("-2.00")], {}),
    ("boolean", "true", pa.bool_(), True, {}),
    ("char(5)", "'ä'", pa.string(), "ä    ", {}),
    ("bytea", "'\\x00ff'", pa.binary(), b"\0\xff", {}),
    ("uuid", f"'{UPPER}'", pa.string(), LOWER, UUID),
    ("jsonb", "'{\"a\": [1]}'", pa.string(), '{"a": [1]}', JSON),
    ("mood", "'so so'", pa.string(), "so so", {"avro.enum": '["sad", "so so"]'}),
    ("mood[]", "'{sad,null}'", pa.list_(pa.string()), ["sad", None], {}),
    ("pair", "'(1,\"x y\")'", pa.string(), '{"a":1,"b":"x y"}', JSON),
    ("price", "3.5", pa.decimal128(8, 3), Decimal("3.500"), {}),
    ("date", "'0001-01-01'", pa.date32(), dt.date(1, 1, 1), {}),
    ("date", "'9999-12-31'", pa.date32(), dt.date(9999, 12, 31), {}),
    ("time", "'23:59:59.999999'", pa.time64("us"), dt.time(23, 59, 59, 999999), {}),
    ("timetz", "'12:00+02'", pa.string(), "12:00:00+02", {}),
    ("timestamp", "'1969-12-31 23:59:59.999999'", US, dt.datetime(1969, 12, 31, 23, 59, 59, 999999), {}),
    ("timestamptz", "'2024-03-31 02:30:00+03'", UTC_US, dt.datetime(2024, 3, 30, 23, 30, tzinfo=UTC), {}),
    ("interval", "'1 mon 2 days 3:04:05.6'", pa.string(), "1 mon 2 days 03:04:05.6", {}),
    ("int4range", "'[1,5)'", pa.string(), "[1,5)", {}),
    ("inet", "'10.0.0.1/8'", pa.string(), "10.0.0.1/8", {}),
    ("bit(3)", "B'101'", pa.string(), "101", {}),
    ("money", "'-12.34'", pa.decimal128(19, 2), Decimal("-12.34"), {}),
    ("xml", "'<a/>'", pa.string(), "<a/>", {}),
    ("tsvector", "'b a'", pa.string(), "'a' 'b'", {}),
    ("oid", "4294967295", pa.int64(), 4294967295, {}),
    ("point", "'(1,2)'", pa.string(), "(1,2)", {}),
    ("uuid[]", "'{" + UPPER + ",null}'", pa.list_(pa.string()), [LOWER, None], {}),
    ("timestamptz[]", "'{}'", pa.list_(UTC_US), [], {}),
    ("int[][]", "'{{1,2},{3,4}}'", pa.string(), "[[1,2],[3,4]]", JSON),
    ("bytea[]", "array['\\xff'::bytea]", pa.list_(pa.binary()), [b"\xff"], {}),
    ("inet[]", "'{::1}'", pa.list_(pa.string()), ["::1/128"], {}),
]  # fmt: skip

MARIADB: list[tuple[str, str, pa.DataType, Any, dict[str, str]]] = [
    ("tinyint(1)", "2", pa.int8(), 2, {}),
    ("smallint unsigned", "65535", pa.uint16(), 65535, {}),
    ("mediumint", "-5", pa.int32(), -5, {}),
    ("bigint unsigned", "18446744073709551615", pa.uint64(), 2**64 - 1, {}),
    ("decimal(30,10)", "-12345678901234567890.5", pa.decimal128(30, 10), Decimal("-12345678901234567890.5"), {}),
    ("float", "16777216", pa.float32(), 16777216.0, {}),
    ("float", "0.1", pa.float32(), "float32", {}),
    ("double", "0.1", pa.float64(), 0.1, {}),
    ("bit(1)", "b'0'", pa.bool_(), False, {}),
    ("bit(10)", "b'1000000001'", pa.binary(), b"\x02\x01", {}),
    ("year", "2024", pa.int32(), 2024, {}),
    ("date", "'9999-12-31'", pa.date32(), dt.date(9999, 12, 31), {}),
    ("datetime(6)", "'1001-01-01 00:00:00.000001'", US, dt.datetime(1001, 1, 1, 0, 0, 0, 1), {}),
    ("timestamp(6)", "'2024-01-01 00:00:00.5'", UTC_US, dt.datetime(2024, 1, 1, 0, 0, 0, 500000, UTC), {}),
    ("time(6)", "'23:59:59.000001'", pa.time64("us"), dt.time(23, 59, 59, 1), {}),
    ("varchar(20)", "'größe \\'%s %'", pa.string(), "größe '%s %", {}),
    ("text", "'😀'", pa.string(), "😀", {}),
    ("varbinary(5)", "x'00ff'", pa.binary(), b"\0\xff", {}),
    ("blob", "''", pa.binary(), b"", {}),
    ("enum('a','b''c')", "'b''c'", pa.string(), "b'c", {"avro.enum": json.dumps(["a", "b'c"])}),
    ("set('x','y','z')", "'z,x'", pa.string(), "x,z", {}),
    ("json", "'{\"a\": 1}'", pa.string(), '{"a": 1}', JSON),
    ("uuid", f"'{UPPER}'", pa.string(), LOWER, UUID),
    ("inet6", "'::1'", pa.string(), "::1", {}),
    ("point", "point(1, 2)", pa.string(), "POINT(1 2)", {}),
]  # fmt: skip

SQLITE: list[tuple[str, str, pa.DataType, Any, dict[str, str]]] = [
    ("integer", "-9223372036854775808", pa.int64(), -(2**63), {}),
    ("unsigned big int", "5", pa.int64(), 5, {}),
    ("real", "2", pa.float64(), 2.0, {}),
    ("boolean", "1", pa.bool_(), True, {}),
    ("decimal(12,2)", "12.10", pa.decimal128(12, 2), Decimal("12.10"), {}),
    ("decimal(12,2)", "7", pa.decimal128(12, 2), Decimal("7.00"), {}),
    ("numeric", "1.5", pa.string(), "1.5", {}),
    ("varchar(10)", "'ä'", pa.string(), "ä", {}),
    ("text", "'a'||char(0)||'b'", pa.string(), "a\0b", {}),
    ("blob", "x'00ff'", pa.binary(), b"\0\xff", {}),
    ("date", "'2024-02-29'", pa.date32(), dt.date(2024, 2, 29), {}),
    ("datetime", "'1969-12-31 23:59:59.999999'", US, dt.datetime(1969, 12, 31, 23, 59, 59, 999999), {}),
    ("datetime", "'2024-01-01T00:00:00+02:00'", US, dt.datetime(2023, 12, 31, 22), {}),
    ("timestamp", "-1", US, dt.datetime(1969, 12, 31, 23, 59, 59), {}),
    ("timestamp", "1700000000.25", US, dt.datetime(2023, 11, 14, 22, 13, 20, 250000), {}),
    ("timestamptz", "'2024-01-01 00:00:00Z'", UTC_US, dt.datetime(2024, 1, 1, tzinfo=UTC), {}),
    ("time", "'12:34:56.000001'", pa.time64("us"), dt.time(12, 34, 56, 1), {}),
    ("json", "'[1]'", pa.string(), "[1]", JSON),
    ("json", "5", pa.string(), "5", JSON),
    ("uuid", "x'6F9619FF8B86D011B42D00C04FC964FF'", pa.string(), LOWER, UUID),
    ("uuid", f"'{UPPER}'", pa.string(), LOWER, UUID),
    ("string", "1.25", pa.string(), "1.25", {}),
    ("", "'x'", pa.string(), "x", {}),
]  # fmt: skip

CASES = [
    (dialect, *case)
    for dialect, table in (("postgres", POSTGRES), ("mariadb", MARIADB), ("sqlite", SQLITE))
    for case in table
]


@pytest.fixture
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    found = databank(request.param, request)
    yield found
    found.run("drop table if exists typed")
    if request.param == "postgres":
        for kind in ("type if exists mood", "type if exists pair", "domain if exists price"):
            found.run(f"drop {kind}")
    found.close()


def create(bank: Databank, dialect: str, kind: str) -> None:
    if dialect == "postgres":
        bank.run("create type mood as enum ('sad', 'so so')")
        bank.run("create type pair as (a int, b text)")
        bank.run("create domain price as numeric(8,3)")
    bank.run(f"create table typed (id int primary key, v {kind} {'null' if dialect == 'mariadb' else ''})")


@pytest.mark.parametrize(
    ("bank", "dialect", "kind", "literal", "arrow", "value", "extra"),
    [(case[0], *case) for case in CASES],
    ids=[f"{case[0]}-{case[1]}-{case[2]}" for case in CASES],
    indirect=["bank"],
)
async def test_a_type_comes_out_as_stated(
    bank: Databank, dialect: str, kind: str, literal: str, arrow: pa.DataType, value: Any, extra: dict[str, str]
) -> None:
    create(bank, dialect, kind)
    bank.run(f"insert into typed values (1, {literal}), (2, null)")
    table = await read(bank.url, stream("typed"))
    field = table.schema.field("v")
    metadata = {k.decode(): v.decode() for k, v in field.metadata.items()}
    assert field.type == arrow
    assert field.nullable
    assert {k: v for k, v in metadata.items() if k != "sql_type"} == extra
    found, nothing = table.column("v").to_pylist()
    assert nothing is None
    if value == "nan":
        assert found != found
    elif value == "float32":
        assert table.column("v")[0] == pa.scalar(0.1, pa.float32())
    else:
        assert found == value


REFUSED = [
    ("postgres", "timestamptz", "'infinity'", "infinite timestamp"),
    ("postgres", "timestamp", "'-infinity'", "infinite timestamp"),
    ("postgres", "date", "'infinity'", "infinite date"),
    ("postgres", "date[]", "'{2024-01-01,-infinity}'", "infinite date"),
    ("postgres", "numeric(10,2)", "'NaN'", "nan"),
    ("postgres", "time", "'24:00'", "24:00:00"),
    ("postgres", "int[]", "'{{1,2},{3,4}}'", "several dimensions"),
    ("mariadb", "date", "'0000-00-00'", "0000-00-00"),
    ("mariadb", "datetime", "'2024-00-00 00:00:00'", "2024-00-00"),
    ("mariadb", "time", "'-01:00:00'", "-01:00:00"),
    ("mariadb", "time", "'24:00:00'", "24:00:00"),
    ("sqlite", "integer", "'abc'", "a text"),
    ("sqlite", "integer", "1.5", "a real 1.5"),
    ("sqlite", "integer", "x'00'", "a blob"),
    ("sqlite", "boolean", "2", "an integer 2"),
    ("sqlite", "text", "x'00'", "a blob"),
    ("sqlite", "text", "cast(x'ff41' as text)", "a text that is not UTF-8"),
    ("sqlite", "blob", "'text'", "a text"),
    ("sqlite", "decimal(12,2)", "1.005", "a real 1.005"),
    ("sqlite", "decimal(4,2)", "100", "an integer 100"),
    ("sqlite", "date", "1700000000", "an integer"),
    ("sqlite", "datetime", "1700000000000", "an integer 1700000000000"),
    ("sqlite", "uuid", "'no uuid'", "a text"),
    ("sqlite", "json", "x'00'", "a blob"),
]


@pytest.mark.parametrize(
    ("bank", "dialect", "kind", "literal", "reason"),
    [(case[0], *case) for case in REFUSED],
    ids=[f"{case[0]}-{case[1]}-{case[2]}" for case in REFUSED],
    indirect=["bank"],
)
async def test_a_value_without_a_form_names_its_column_and_row(
    bank: Databank, dialect: str, kind: str, literal: str, reason: str
) -> None:
    create(bank, dialect, kind)
    if dialect == "mariadb":
        bank.run("set session sql_mode = ''")
    good = {"blob": "x'01'", "boolean": "1"}.get(kind, "null")
    bank.run(f"insert into typed values (7, {literal}), (1, {good}), (9, null)")
    with pytest.raises(EncodeError) as caught:
        await read(bank.url, stream("typed"))
    assert (caught.value.field, caught.value.key) == ("v", "7")
    assert reason in str(caught.value)
    assert "'v'" in str(caught.value)


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
