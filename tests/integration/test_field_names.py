"""Fields keep their columns on the topic: when the table changes between runs or during one, with and without a
registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from producer.config import load_config
from producer.errors import SchemaIncompatibleError
from producer.metrics import Metrics
from producer.service import Service
from producer.verify import Counts, verify
from tests.integration.test_cli import answer, producer
from tests.integration.test_drift import Drifting, stream_of
from tests.sql import databank

#: A database, whether there is a registry, and whether the table is changed while the stream runs.
CASES = [
    ("sqlite", True, False),
    ("postgres", True, True),
    ("mariadb", False, True),
    ("sqlite", False, False),
]
EXACTLY_ONCE = {"delivery": "exactly_once", "checkpoints": {"type": "kafka"}}


class Changing:
    """A table ``t`` with an ``id`` and texts, each of which is the name of its column."""

    def __init__(self, drifting: Drifting) -> None:
        self.drifting = drifting
        self._columns: list[str] = []
        self._rows = 0
        drifting.bank.run("drop table t")
        drifting.bank.run("create table t (id integer not null primary key)")

    def add(self, *columns: str) -> None:
        for column in columns:
            self.drifting.bank.run(f"alter table t add {self.drifting.bank.quote(column)} varchar(20)")
            self._columns.append(column)

    def drop(self, column: str) -> None:
        self.drifting.bank.run(f"alter table t drop column {self.drifting.bank.quote(column)}")
        self._columns.remove(column)

    def swap(self, gone: str, new: str) -> None:
        self.drop(gone)
        self.add(new)

    def insert(self) -> None:
        self._rows += 1
        self.drifting.insert((self._rows, *self._columns))


async def check(drifting: Drifting, expected: dict[str, str], differing: int = 0) -> None:
    """The newest schema has the expected fields; each value is of the column that is its field's. `differing` rows have
    lost values on the topic with a column that was dropped, and is there again."""
    newest = await drifting.values(newest=True)
    assert set(newest[-1]) == {"id", *expected}
    for row in newest:
        assert all(value in (None, expected[name]) for name, value in row.items() if name != "id"), row
    own: dict[str, set[str]] = {}
    for row in await drifting.values():
        for name, value in row.items():
            if name != "id" and value is not None:
                own.setdefault(name, set()).add(value)
    assert all(len(columns) == 1 for columns in own.values()), own
    stream = drifting.config.streams[0]
    verified = await verify(drifting.config, stream, Counts())
    assert not verified.comparison.missing_keys | verified.comparison.unexpected_keys
    assert len(verified.comparison.differing_keys) == differing


@pytest.mark.parametrize(("kind", "has_registry", "live"), CASES)
async def test_each_field_keeps_its_column(
    kind: str,
    has_registry: bool,
    live: bool,
    request: pytest.FixtureRequest,
    kafka_bootstrap: str,
    unique: str,
    tmp_path: Path,
) -> None:
    registry = str(request.getfixturevalue("registry_url")) if has_registry else None
    with contextlib.closing(databank(kind, request)) as bank:
        drifting = stream_of(bank, registry, kafka_bootstrap, unique, tmp_path)
        table = Changing(drifting)
        steps: list[Callable[[], None]] = [
            lambda: table.add("a-b", "net$", "net#"),
            lambda: table.add("a_b"),
            lambda: table.drop("net$"),
            lambda: table.swap("a-b", "net_"),
            lambda: table.add("net$", "a-b"),
        ]
        async with _running(drifting) if live else contextlib.nullcontext():
            for number, step in enumerate(steps, 1):
                step()
                table.insert()
                if live:
                    await drifting.arrived(number)
                else:
                    assert (await drifting.run()).state == "complete"
                    if number == 3:
                        await check(drifting, {"a_b": "a-b", "net__2": "net#", "a_b_2": "a_b"})
        await check(drifting, {"a_b": "a-b", "net_": "net$", "net__2": "net#", "a_b_2": "a_b", "net__3": "net_"}, 3)


@contextlib.asynccontextmanager
async def _running(drifting: Drifting) -> AsyncIterator[None]:
    async with drifting.running():
        yield
    assert drifting.done[0].state == "stopped", drifting.done[0]


async def test_a_schema_file_that_moves_a_field_is_refused_by_run_and_validate(
    request: pytest.FixtureRequest, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    with contextlib.closing(databank("sqlite", request)) as bank:
        drifting = stream_of(bank, None, kafka_bootstrap, unique, tmp_path)
        table = Changing(drifting)
        table.add("net$", "net#")
        table.insert()
        path = tmp_path / "producer.yaml"
        document: dict[str, Any] = _document(path) | EXACTLY_ONCE
        drifting.config = _written(path, document)
        assert (await drifting.run()).state == "complete"
        field = {"name": "net_", "column": "net#", "type": ["null", "string"], "default": None}
        (tmp_path / "t.avsc").write_text(json.dumps(_record(field)))
        document["streams"][0]["schema"] = "t.avsc"
        config = _written(path, document)
        table.insert()
        with pytest.raises(
            SchemaIncompatibleError, match="field 'net_' has held column 'net\\$', and would hold 'net#'"
        ):
            await _run(config)
        done = await asyncio.to_thread(producer, "validate", path)
        assert done.returncode == 2
        assert "field 'net_' has held column 'net$', and would hold 'net#'" in done.stdout
        (tmp_path / "t.avsc").write_text(json.dumps(_record(field | {"former_columns": ["net$"]})))
        (summary,) = await _run(config)
        assert (summary.state, summary.acked) == ("complete", 1)


async def test_the_schema_command_shows_and_registers_what_a_run_uses(
    registry_url: str, request: pytest.FixtureRequest, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    with contextlib.closing(databank("sqlite", request)) as bank:
        drifting = stream_of(bank, registry_url, kafka_bootstrap, unique, tmp_path)
        table = Changing(drifting)
        table.add("net$", "net#")
        table.insert()
        await drifting.run()
        table.drop("net$")
        path = tmp_path / "producer.yaml"
        shown = await asyncio.to_thread(answer, "schema", "show", path, "--json")
        assert [field["name"] for field in shown["value"]["fields"]] == ["id", "net__2"]
        assert (await asyncio.to_thread(producer, "schema", "register", path)).returncode == 0
        document = _document(path)
        document["schema_registry"]["auto_register"] = False
        drifting.config = _written(path, document)
        table.insert()
        assert (await drifting.run()).state == "complete"
        await check(drifting, {"net__2": "net#"})


def _record(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "t", "fields": [{"name": "id", "type": "long"}, *fields]}


def _document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def _written(path: Path, document: dict[str, Any]) -> Any:
    path.write_text(json.dumps(document))
    return load_config(path)


async def _run(config: Any) -> Any:
    return await Service(config, metrics=Metrics(), run_id="test").run(once=True, stop=asyncio.Event())
