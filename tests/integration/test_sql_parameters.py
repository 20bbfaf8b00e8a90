"""Parameters of `where` beside everything that only looks like one, on each database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.sql_reading import read, stream
from tests.sql import databank

#: Conditions that are true for the row 2 alone, whose text is ``it's :no``; the parameter ``two`` is 2.
CONDITIONS = {
    "postgres": [
        r"s = 'it''s :no' AND id = :two",
        r"s = E'it\'s :no' AND id = :two",
        "s = E'it'\n '\\'s :no' AND id = :two",
        "s = $t$it's :no$t$ AND id = :two",
        "s = $täg$it's :no$täg$ AND id = :two",
        "id = :two /* ' /* :no */ ' :no */",
        "id = :two -- ' :no",
        r"id = :two AND '\' <> ':no'",
        "(array[1, :two, 3])[2:id] = array[id] AND id::text = '2'",
        "(array[1, 2])[:two] = id",
        "date'2020-01-01' + id = date'2020-01-03' AND s LIKE '%:no' AND id = :two",
        """'{"a": [2]}'::jsonb @? ('$.a[*] ? (@ == ' || id || ')')::jsonpath AND id = :two""",
        "coalesce(null, $$:no$$) = ':no' AND id = :two",
    ],
    "mariadb": [
        r"s = 'it\'s :no' AND id = :two",
        r"""s = "it's :no" AND id = :two""",
        r"""CONCAT("\":no", '\\') = '":no\\' AND id = :two""",
        "id = :two # ' :no",
        "id = :two -- ' :no",
        "id = :two /* ' /* :no */",
        "id = 4--2-6+:two AND id = :two /*!50000 AND s = 'it''s :no' */",
        "JSON_EXTRACT('{\"a:no\": 2}', '$.\"a:no\"') = id AND id = :two",
    ],
    "sqlite": [
        r"s = 'it''s :no' AND id = :two AND '\' <> ':no'",
        "t.[s] = 'it''s :no' AND id = :two",
        "`s` LIKE '%:no' AND id = :two -- ' :no",
        "id = :two /* ' /* :no */",
    ],
}


@pytest.mark.parametrize("dialect", CONDITIONS)
async def test_a_parameter_is_found_where_it_is_and_nowhere_else(
    request: pytest.FixtureRequest, dialect: str, tmp_path: Path
) -> None:
    bank = databank(dialect, request, tmp_path)
    bank.run("create table t (id int primary key, s varchar(20))")
    bank.insert("t", [(1, "it"), (2, "it's :no"), (3, "two")])
    found = {}
    for condition in CONDITIONS[dialect]:
        rows = await read(bank.url, stream("t", where=condition, params={"two": 2}))
        found[condition] = rows.column("id").to_pylist()
    bank.run("drop table t")
    bank.close()
    assert found == {condition: [2] for condition in CONDITIONS[dialect]}
