"""Rows with NULL in a column of the key or order: counted, named, and never passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.null_keys import Runs
from tests.sql import TABLES, Databank, databank

LONG_AGO = "2020-01-01 00:00:00"


@dataclass(frozen=True)
class Kind:
    """A kind of key: its table and stream; rows with a key, one without, and what the error says of that."""

    columns: str
    settings: dict[str, Any]
    rows: tuple[tuple[Any, ...], ...]
    lacking: tuple[Any, ...]
    column: str
    named: str
    modes: tuple[str, ...] = ("snapshot", "tail", "snapshot_then_tail")
    view: bool = False


CODES = ((1, "a"), (2, "b"), (3, "c"))
TIMED = ("snapshot", "tail", "snapshot_then_tail", "timestamp")
EVERYWHERE = {
    "uniquely": Kind("id int, code varchar(9) unique", {"key": ["code"]}, CODES, (4, None), "code", "code=NULL, id=4"),
    "no_index": Kind("id int, code varchar(9)", {"key": ["code"]}, CODES, (4, None), "code", "code=NULL, id=4"),
    "first_part": Kind("a int, b int", {"key": ["a", "b"]}, ((1, 1), (2, 2)), (None, 3), "a", "a=NULL, b=3"),
    "second_part": Kind("a int, b int", {"key": ["a", "b"]}, ((1, 1), (2, 2)), (3, None), "b", "a=3, b=NULL"),
    "whole_number": Kind("id int, v int", {"key": ["id"]}, ((1, 1), (2, 2)), (None, 3), "id", "id=NULL, v=3"),
    "selected": Kind(
        "id int, code varchar(9)",
        {"key": ["code"], "where": "id > :least", "params": {"least": 0}},
        (*CODES, (-1, None)),
        (4, None),
        "code",
        "code=NULL, id=4",
    ),
    "counted": Kind(
        "id int, code varchar(9)",
        {"key": ["code"], "traversal": "OFFSET"},
        CODES,
        (4, None),
        "code",
        "code=NULL, id=4",
        modes=("snapshot",),
    ),
    "view": Kind("id int, code varchar(9)", {"key": ["code"]}, CODES, (4, None), "code", "code=NULL, id=4", view=True),
    "time": Kind(
        "id int not null primary key, changed MOMENT",
        {"order_by": ["changed"]},
        ((1, LONG_AGO), (2, LONG_AGO)),
        (3, None),
        "changed",
        "changed=NULL, id=3",
        modes=TIMED,
    ),
    "time_of_a_view": Kind(
        "id int not null primary key, changed MOMENT",
        {"key": ["id"], "order_by": ["changed"]},
        ((1, LONG_AGO), (2, LONG_AGO)),
        (3, None),
        "changed",
        "changed=NULL, id=3",
        modes=TIMED,
        view=True,
    ),
}
IN_SQLITE = {
    "text_primary": Kind("k text primary key, v int", {}, (("a", 1), ("b", 2)), (None, 3), "k", "k=NULL, v=3"),
    "int_primary": Kind("k int primary key, v int", {}, ((1, 1), (2, 2)), (None, 3), "k", "k=NULL, v=3"),
    "descending": Kind("k integer primary key desc, v int", {}, ((1, 1), (2, 2)), (None, 3), "k", "k=NULL, v=3"),
    "composite_primary": Kind(
        "a int, b text, v int, primary key (a, b)", {}, ((1, "a", 1), (2, "b", 2)), (3, None, 3), "b", "a=3, b=NULL"
    ),
}
MOMENTS = {"postgres": "timestamptz", "sqlite": "timestamp", "mariadb": "datetime(6)"}
EXPECTED = [(mode, bad) for mode in TIMED for bad in ("fail", "dead_letter")]


@pytest.fixture(params=TABLES)
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    made = databank(request.param, request)
    yield made
    made.close()


@pytest.fixture
def kinds(bank: Databank, request: pytest.FixtureRequest) -> Iterator[dict[str, Kind]]:
    """The kinds of keys of the database; their tables, with the rows that have a key, are there."""
    dialect = request.node.callspec.params["bank"]
    found = EVERYWHERE | (IN_SQLITE if dialect == "sqlite" else {})
    for name, kind in found.items():
        base = f"{name}_base" if kind.view else name
        bank.run(f"create table {base} ({kind.columns.replace('MOMENT', MOMENTS[dialect])})")
        bank.insert(base, kind.rows)
        if kind.view:
            bank.run(f"create view {name} as select * from {base}")
    yield found
    for name, kind in found.items():
        if kind.view:
            bank.run(f"drop view {name}")
        bank.run(f"drop table {name}_base" if kind.view else f"drop table {name}")


def insert(bank: Databank, name: str, kind: Kind, *rows: tuple[Any, ...]) -> None:
    bank.insert(f"{name}_base" if kind.view else name, rows)


def streams(kinds: dict[str, Kind], mode: str, bad: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"table": name, "mode": mode, "on_bad_record": bad, "page_size": 1, "max_parallel": 2, **kind.settings, **more}
        for name, kind in kinds.items()
        if mode in kind.modes
    ]


def fits(kind: Kind, name: str, error: str | None) -> bool:
    what = f"stream {name!r}: 1 row has NULL in column {kind.column!r} of the key or order"
    return error is not None and what in error and kind.named in error


@pytest.mark.parametrize(("mode", "bad"), EXPECTED)
async def test_every_run_finds_a_row_that_came_after_planning(
    bank: Databank, kinds: dict[str, Kind], mode: str, bad: str
) -> None:
    runs = Runs(bank.url, streams(kinds, mode, bad))
    names = [str(one["table"]) for one in runs.streams]
    first = await runs.once()
    assert {name: first[name].error for name in names} == dict.fromkeys(names)
    assert {name: len(runs.rows(name)) for name in names} == {
        name: sum(None not in row for row in kinds[name].rows) for name in names
    }
    for name in names:
        insert(bank, name, kinds[name], kinds[name].lacking)
    letters: dict[str, int] = dict.fromkeys(names, 0)
    for _ in range(2):  # the second run goes on from the checkpoint of the first
        again = await runs.once()
        for name in names:
            if bad == "fail":
                assert fits(kinds[name], name, again[name].error), (name, again[name].error)
            else:
                assert (again[name].error, again[name].state) == (None, "complete")
            letters[name] += len(runs.letters(name))
            assert runs.rows(name) == []
    assert letters == dict.fromkeys(names, 0 if bad == "fail" else 1)
