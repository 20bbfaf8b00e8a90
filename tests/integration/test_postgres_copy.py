"""Owns the claim that PostgreSQL's pages are the same by libpq's COPY and by the driver, value by value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from producer.sources.sql import libpq, postgres
from producer.sources.sql.libpq import CopyConnection
from tests.integration.sql_reading import read, stream
from tests.sql import Databank, databank

# type, SQL literals
COLUMNS = {
    "smallint": ("-32768", "32767", "0"),
    "integer": ("-2147483648", "2147483647", "7"),
    "bigint": ("-9223372036854775808", "9223372036854775807", "0"),
    "real": ("'NaN'", "'-Infinity'", "1e-40", "0.1"),
    "double precision": ("'NaN'", "'Infinity'", "-0.0", "5e-324", "1e308"),
    "boolean": ("true", "false"),
    "text": ("''", "'x'", "'größe 😀'", "repeat('long ', 20000)"),
    "varchar(5)": ("''", "'abc'"),
    "char(3)": ("'a'",),
    "name": ("'n'",),
    "json": ("'{\"a\":  1}'", "'[]'"),
    "jsonb": ("'{\"a\":  1}'", "'null'"),
    "bytea": ("''", "'\\x00ff00'"),
    "uuid": ("'6F9619FF-8B86-D011-B42D-00C04FC964FF'",),
    "date": ("'0001-01-01'", "'1969-12-31'", "'9999-12-31'", "'4713-01-01 BC'"),
    "time": ("'00:00'", "'23:59:59.999999'"),
    "timestamp": ("'1969-12-31 23:59:59.999999'", "'0001-01-01'", "'9999-12-31 23:59:59.999999'"),
    "timestamptz": ("'2024-03-31 02:30:00+03'", "'1900-01-01 00:00:00-12'"),
    "numeric(12,2)": ("0", "-0.10", "0.01", "9999999999.99", "-10000", "99990000"),
    "numeric(38,0)": ("99999999999999999999999999999999999999", "-1", "100000000000000000000"),
    "numeric(38,38)": ("0.00000000000000000000000000000000000001", "-0.5"),
    "numeric(20,10)": ("0.0001", "0.00001234", "1234567890.0000000001", "10000.0001"),
    "numeric(2,-3)": ("12345", "-1000"),
    "numeric(60,10)": ("123456789012345678901234567890123456789012345.5",),
    "numeric": ("0", "0.00", "-0.10", "1e-20", "123456.700", "10000", "1e30", "-99999999.00001", "0.00010000"),
    "money": ("-12.34", "92233720368547758.07"),
    "oid": ("4294967295",),
    "interval": ("'1 mon 2 days'",),
    "bigint[]": ("'{1,null}'",),
}


@pytest.fixture
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    bank = databank("postgres", request)
    yield bank
    bank.close()


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[pa.RecordBatch | None]:
    """What libpq's way has read."""
    found: list[pa.RecordBatch | None] = []
    real = CopyConnection.copy

    def copy(self: CopyConnection, *arguments: Any) -> Any:
        result = real(self, *arguments)
        found.append(result.batch if result is not None else None)
        return result

    monkeypatch.setattr(CopyConnection, "copy", copy)
    return found


def table_of(bank: Databank, name: str, kind: str, literals: tuple[str, ...]) -> None:
    bank.run(f'drop table if exists "{name}"')
    bank.run(f'create table "{name}" (id bigint primary key, v {kind})')
    values = ", ".join(f"({n}, {literal})" for n, literal in enumerate((*literals, "null", literals[0])))
    bank.run(f'insert into "{name}" values {values}')


def shown(table: pa.Table) -> list[str]:
    """The values as text, since NaN is not equal to itself, and Python has no years before 1."""
    values = table.column("v").combine_chunks()
    return [str(value) for value in (values.view(pa.int32()) if values.type == pa.date32() else values)]


@pytest.mark.parametrize("kind", COLUMNS)
async def test_both_ways_give_the_same_values(
    bank: Databank, kind: str, copied: list[pa.RecordBatch | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    table_of(bank, "t", kind, COLUMNS[kind])
    by_copy = await read(bank.url, stream("t"))
    by_copy.validate(full=True)
    used = len(copied)
    monkeypatch.setattr(libpq, "load", lambda: None)
    by_driver = await read(bank.url, stream("t"))
    assert len(copied) == used
    assert by_copy.schema.equals(by_driver.schema, check_metadata=True)
    assert shown(by_copy) == shown(by_driver)
    assert by_copy.num_rows == len(COLUMNS[kind]) + 2


async def test_pages_of_common_types_are_read_by_copy(
    bank: Databank, copied: list[pa.RecordBatch | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ", ".join(f'"{kind}" {kind}' for kind in COLUMNS if kind not in ("bigint[]", "numeric(60,10)"))
    bank.run(f"create table common (id bigint primary key, {columns})")
    bank.run("insert into common (id) select generate_series(1, 3)")

    def never(*_: object) -> Any:
        raise AssertionError("read by the driver")

    monkeypatch.setattr(postgres, "_read", never)
    table = await read(bank.url, stream("common", mode="snapshot"))
    assert table.column("id").to_pylist() == [1, 2, 3]
    assert any(batch is not None and batch.num_columns == len(table.schema) for batch in copied)


async def test_a_value_without_a_form_is_left_to_the_driver_which_names_it(
    bank: Databank, copied: list[pa.RecordBatch | None]
) -> None:
    table_of(bank, "t", "timestamp", ("'2024-01-01'", "'infinity'"))
    with pytest.raises(Exception, match="column 'v', row with key 1: an infinite timestamp"):
        await read(bank.url, stream("t"))
    assert None in copied
    bank.run("update t set v = '2024-01-02' where id = 1")
    assert (await read(bank.url, stream("t"))).num_rows == 4


async def test_a_result_that_is_too_large_for_a_page_is_cut_and_gone_on_with(bank: Databank) -> None:
    bank.run("create table heavy (id bigint primary key, v text)")
    bank.run("insert into heavy select g, repeat(chr(64 + g % 26), 3000000) from generate_series(1, 12) g")
    table = await read(bank.url, stream("heavy", page_size=12))
    assert table.column("id").to_pylist() == list(range(1, 13))
    assert [len(text) for text in table.column("v").to_pylist()] == [3_000_000] * 12
