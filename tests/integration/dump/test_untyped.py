"""Tables that no schema file describes: without an id, without rows, and with values of any kind in one column."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from producer.config import StreamConfig
from producer.dump import DumpConfig, DumpService
from producer.dump import state as state_file
from producer.dump.state import SavedDump
from producer.errors import ConfigError, EncodeError, PermanentError
from producer.sinks.files import FileSink
from producer.sources.iptvportal import AsyncIPTVPortalClient
from tests.dump import open_client, read_back
from tests.jsonsql.server import JsonSqlServer, fill_sqlite

TEXT = ("jsonl", "csv", "json")
TYPED = ("parquet", "avro")


@pytest.fixture
async def client(server: JsonSqlServer) -> AsyncIterator[AsyncIPTVPortalClient]:
    async with open_client(server, schema_file=None) as client:
        yield client


def fill(server: JsonSqlServer, rows: list[tuple[Any, ...]], columns: str) -> None:
    fill_sqlite(server.settings.database, "t", rows, columns)


@pytest.mark.parametrize("form", [*TEXT, *TYPED])
async def test_a_table_without_an_id_is_dumped_by_offset(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, form: str
) -> None:
    fill(server, [(f"k{i}", i) for i in range(25)], "code TEXT PRIMARY KEY, n INTEGER")
    stats = await DumpService(client).dump(DumpConfig(table="t", output_dir=out, format=form, chunk_size=10))
    rows = [(row["field_0"], int(row["field_1"])) for row in read_back(list(stats.files))]
    assert rows == [(f"k{i}", i) for i in range(25)]


async def test_a_described_table_without_an_id_is_read_in_the_order_of_its_columns(
    server: JsonSqlServer, out: Path, tmp_path: Path
) -> None:
    fill(server, [(f"k{9 - i}", i) for i in range(10)], "code TEXT, n INTEGER")
    schema = tmp_path / "schema.yaml"
    schema.write_text("tables: {t: {columns: [{name: code, type: text}, {name: n, type: integer}]}}")
    async with open_client(server, schema_file=str(schema)) as client:
        stats = await DumpService(client).dump(DumpConfig(table="t", output_dir=out, chunk_size=3))
    assert [row["code"] for row in read_back(list(stats.files))] == [f"k{i}" for i in range(10)]
    assert all(request.get("order_by") in (None, ["code", "n"]) for request in server.requests)


@pytest.mark.parametrize("traversal", ["OFFSET", "ID_RANGE"])
async def test_two_streams_of_a_table_read_the_rows_of_their_own_condition(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, traversal: str
) -> None:
    """The first page of one, which its columns were inferred from, is not taken for the other's."""
    fill(server, [(i, i % 2) for i in range(1, 21)], "id INTEGER PRIMARY KEY, n INTEGER")
    source = client.source()
    streams = [
        StreamConfig(name=f"s{n}", source="p", table="t", topic="t", traversal=traversal, where=where, max_parallel=1)
        for n, where in enumerate(({"eq": ["n", 0]}, {"eq": ["n", 1]}))
    ]
    datasets = [await source.describe(stream) for stream in streams]
    found = []
    for stream, dataset in zip(streams, datasets, strict=True):
        (split,) = await source.plan(stream, dataset)
        page = await (await source.reader(stream, dataset, split)).fetch(None, stream.page_size)
        found.append(page.batch.column(dataset.schema.names[0]).to_pylist())
    assert found == [list(range(2, 21, 2)), list(range(1, 20, 2))]


async def test_a_table_without_an_id_cannot_be_read_by_ranges_of_it(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path
) -> None:
    fill(server, [("a", 1)], "code TEXT, n INTEGER")
    with pytest.raises(PermanentError, match="id"):
        await DumpService(client).dump(DumpConfig(table="t", output_dir=out, strategy="id_range"))


@pytest.mark.parametrize("form", [*TEXT, *TYPED])
async def test_an_id_may_be_text_with_offset_and_not_with_ranges(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, form: str
) -> None:
    fill(server, [(f"id-{i:02}", i) for i in range(25)], "id TEXT PRIMARY KEY, n INTEGER")
    stats = await DumpService(client).dump(DumpConfig(table="t", output_dir=out, format=form, chunk_size=10))
    assert [row["field_0"] for row in read_back(list(stats.files))] == [f"id-{i:02}" for i in range(25)]
    with pytest.raises(ConfigError, match="ID_RANGE needs a numeric id"):
        await DumpService(client).dump(DumpConfig(table="t", output_dir=out / "r", strategy="id_range", format=form))


@pytest.mark.parametrize("form", [*TEXT, *TYPED])
@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_an_empty_table_is_dumped_beside_others_and_later_has_its_rows(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, form: str, strategy: str
) -> None:
    fill(server, [], "id INTEGER PRIMARY KEY, name TEXT")
    configs = [DumpConfig(table=table, output_dir=out, format=form, strategy=strategy) for table in ("t", "media")]
    empty, full = await DumpService(client).dump_many(configs)
    assert (empty.state, empty.progress.dumped_rows, full.progress.dumped_rows) == ("complete", 0, 300)
    assert read_back(list(empty.files)) == []
    with sqlite3.connect(server.settings.database) as database:
        database.execute("INSERT INTO t VALUES (7, 'seven')")
    database.close()
    stats = await DumpService(client).dump(configs[0])
    assert [str(row["field_0"]) for row in read_back(list(stats.files))] == ["7"]


#: Values of one column, of which the first page has only the first two; what Parquet and Avro have of them in the end.
MIXED: dict[str, tuple[list[Any], list[Any]]] = {
    "integers and a fraction": ([1, 2, 6001.5, 3], [1.0, 2.0, 6001.5, 3.0]),
    "integers above 2**63": ([1, 2, 2**63, 2**64 - 1], [1, 2, 2**63, 2**64 - 1]),
    "integers above 2**64": ([1, 2, 2**70, -(2**70)], [1, 2, 2**70, -(2**70)]),
    "integers of 40 digits": ([1, 2, 10**39, 4], ["1", "2", "1" + "0" * 39, "4"]),
    "numbers and text": ([1, 2, "three", None], ["1", "2", '"three"', None]),
    "text and numbers": (["a", "b", 3, None], ['"a"', '"b"', "3", None]),
    "booleans and numbers": ([True, False, 2, None], ["true", "false", "2", None]),
    "fractions and booleans": ([1.5, 2.25, True, None], ["1.5", "2.25", "true", None]),
    "nulls, then numbers": ([None, None, 3, 4], [None, None, "3", "4"]),
    "nulls, then text": ([None, None, "x", "y"], [None, None, "x", "y"]),
    "objects": ([{"a": 1}, [2], "x", 1], ['{"a":1}', "[2]", '"x"', "1"]),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("form", [*TEXT, *TYPED])
@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_a_column_keeps_every_value_whatever_its_first_ones_were(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, name: str, form: str, strategy: str
) -> None:
    values, typed = MIXED[name]
    rows = [(i, None if v is None else json.dumps(v)) for i, v in enumerate(values, start=1)]
    fill(server, rows, "id INTEGER PRIMARY KEY, v any_text")
    config = DumpConfig(table="t", output_dir=out, format=form, chunk_size=2, strategy=strategy, max_parallel=1)
    stats = await DumpService(client).dump(config)
    found = [row["field_1"] for row in read_back(list(stats.files))]
    if form in ("jsonl", "json"):
        assert [(type(v), v) for v in found] == [(type(v), v) for v in values]
    elif form == "csv":
        assert found == [_in_csv(v) for v in values]
    else:
        assert found == typed
    assert stats.progress.dumped_rows == 4
    assert not [path.name for path in out.iterdir() if path.name.endswith((".new", ".tmp", ".lock"))]


def _in_csv(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize("form", TYPED)
async def test_integers_that_a_double_cannot_hold_are_refused_beside_fractions_with_the_remedy(
    client: AsyncIPTVPortalClient, server: JsonSqlServer, out: Path, form: str
) -> None:
    values = [2**53 + 1, 2, 0.5, 1]
    fill(server, [(i, json.dumps(v)) for i, v in enumerate(values)], "id INTEGER PRIMARY KEY, v any_text")
    config = DumpConfig(table="t", output_dir=out, format=form, chunk_size=2)
    with pytest.raises(EncodeError, match=r"'field_1'.*schema file"):
        await DumpService(client).dump(config)
    assert DumpService(client).get_stats("t") is None


@pytest.mark.parametrize("form", TYPED)
@pytest.mark.parametrize("stop", ["before the state", "before the file", "after the file"])
async def test_a_crash_while_files_are_written_again_loses_nothing(
    client: AsyncIPTVPortalClient,
    server: JsonSqlServer,
    out: Path,
    form: str,
    stop: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = [1, 2, 3, 4, 5.5, 6]
    fill(server, [(i, json.dumps(v)) for i, v in enumerate(values)], "id INTEGER PRIMARY KEY, v any_text")
    config = DumpConfig(table="t", output_dir=out, format=form, chunk_size=2)

    class Crash(BaseException):
        pass

    crashed = False

    def crash(*_: object) -> None:
        nonlocal crashed
        crashed = True
        raise Crash

    keep_state = state_file.save
    replace_file = FileSink.replace_file

    def save(config: DumpConfig, saved: SavedDump) -> None:
        if crashed:
            return  # a killed process writes nothing more
        if saved.exact is not None and saved.exact.types.get("field_1") == "float" and stop == "before the state":
            crash()
        keep_state(config, saved)

    def replace(sink: FileSink) -> None:
        if stop == "before the file":
            crash()
        replace_file(sink)
        crash()

    monkeypatch.setattr(state_file, "save", save)
    if stop != "before the state":
        monkeypatch.setattr(FileSink, "replace_file", replace)
    with pytest.raises(Crash):
        await DumpService(client).dump(config)
    monkeypatch.undo()
    stats = await DumpService(client).dump(config)
    assert [row["field_1"] for row in read_back(list(stats.files))] == values
    assert not [path.name for path in out.iterdir() if path.name.endswith((".new", ".tmp"))]
