"""Conditions of IPTVPortal queries: what `Q` compiles to, and what it refuses."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import pytest

from producer.errors import ConfigError
from producer.sources.iptvportal import Q
from producer.sources.iptvportal.query import columns_of, where_json


@pytest.mark.parametrize(
    ("condition", "compiled"),
    [
        (Q(), None),
        (Q(disabled=False), {"eq": ["disabled", False]}),
        (Q(name__neq="a"), {"neq": ["name", "a"]}),
        (Q(n__gt=1), {"gt": ["n", 1]}),
        (Q(n__lte=1.5), {"lte": ["n", 1.5]}),
        (Q(n__in=[1, 2]), {"in": ["n", 1, 2]}),
        (Q(name__ilike="a%"), {"ilike": ["name", "a%"]}),
        (Q(n__isnull=True), {"is": ["n", None]}),
        (Q(n__isnull=False), {"is_not": ["n", None]}),
        (Q(at__gte=dt.datetime(2025, 12, 15, 20, 30)), {"gte": ["at", "2025-12-15 20:30:00"]}),
        (Q(price=decimal.Decimal("1.10")), {"eq": ["price", "1.10"]}),
        (Q(a=1, b=2), {"and": [{"eq": ["a", 1]}, {"eq": ["b", 2]}]}),
        (Q(a=1) & Q(b=2) & Q(c=3), {"and": [{"eq": ["a", 1]}, {"eq": ["b", 2]}, {"eq": ["c", 3]}]}),
        (Q(a=1) | Q(b=2), {"or": [{"eq": ["a", 1]}, {"eq": ["b", 2]}]}),
        (~Q(a=1), {"not": [{"eq": ["a", 1]}]}),
        (
            Q(a=1) & (Q(b=2) | ~Q(c=3)),
            {"and": [{"eq": ["a", 1]}, {"or": [{"eq": ["b", 2]}, {"not": [{"eq": ["c", 3]}]}]}]},
        ),
        (Q() & Q(a=1), {"eq": ["a", 1]}),
    ],
)
def test_a_condition_compiles_to_jsonsql(condition: Q, compiled: Any) -> None:
    assert condition.compile() == compiled


def test_an_unknown_comparison_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gte'"):
        Q(balance__gtee=10)


@pytest.mark.parametrize("value", [object(), b"x", {"a": 1}])
def test_a_value_that_json_cannot_carry_is_refused_by_its_kind(value: Any) -> None:
    with pytest.raises(ConfigError, match=type(value).__name__):
        Q(a=value)


def test_in_needs_a_list() -> None:
    with pytest.raises(ConfigError, match="list"):
        Q(a__in="abc")


def test_where_is_a_q_or_jsonsql_and_nothing_else() -> None:
    assert where_json({"eq": ["a", 1]}) == {"eq": ["a", 1]}
    assert where_json(Q(a=1)) == {"eq": ["a", 1]}
    with pytest.raises(ConfigError, match="str"):
        where_json("a = 1")  # type: ignore[arg-type]


def test_the_columns_of_a_condition_are_found_at_any_depth() -> None:
    condition = Q(a=1) & (Q(b="c") | ~Q(d__in=["e"]))
    assert list(columns_of(condition.compile())) == ["a", "b", "d"]
