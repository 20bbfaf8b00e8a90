"""Rows with NULL in a column of the key or order: counted, named, and never passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.sql_reading import open_source, stream
from tests.sql import TABLES, Databank, databank


@pytest.fixture(params=TABLES)
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    made = databank(request.param, request)
    made.run("create table x (id int, code varchar(20) unique, v int)")
    yield made
    made.run("drop table x")
    made.close()


COUNTED: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]], int, tuple[str, ...]]] = {
    "none": ({"key": ["code"]}, [(1, "a", 1)], 0, ()),
    "one column": (
        {"key": ["code"]},
        [(1, "a", 1), (2, None, 2), (3, None, 3)],
        2,
        ("code=NULL, id=2, v=2", "code=NULL, id=3, v=3"),
    ),
    "a part of several columns": (
        {"key": ["id", "code"]},
        [(1, "a", 1), (2, None, 2), (None, "b", 3), (None, None, 4)],
        3,
        ("id=2, code=NULL", "id=NULL, code=NULL, v=4", "id=NULL, code=b"),
    ),
    "a condition": ({"key": ["code"], "where": "v > 2"}, [(2, None, 2), (3, None, 3)], 1, ("code=NULL, id=3, v=3",)),
    "the order": ({"key": ["id"], "order_by": ["v"]}, [(1, "a", None), (2, "b", 1)], 1, ("v=NULL, id=1",)),
    "the order of OFFSET": ({"key": ["id"], "order_by": ["v"], "traversal": "OFFSET"}, [(1, "a", None)], 0, ()),
}


@pytest.mark.parametrize("kind", COUNTED)
async def test_rows_with_null_in_the_key_are_counted_and_named(bank: Databank, kind: str) -> None:
    settings, rows, count, named = COUNTED[kind]
    bank.insert("x", rows)
    config = stream("x", **settings)
    async with open_source(bank.url) as source:
        await source.describe(config)
        found = await source.null_keys(config)
    assert found.rows == count
    assert sorted(found.named) == sorted(named)
