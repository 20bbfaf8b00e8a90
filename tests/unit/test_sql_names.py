"""Owns names and parameters in SQL text."""

from __future__ import annotations

import pytest

from producer.errors import ConfigError
from producer.sources.sql.lexis import Lexis
from producer.sources.sql.names import bind_named, nearest, nearest_table, parameter_names, quote, split_name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("events", ("events",)),
        ("Public.Events", ("public", "events")),
        ('"Odd Names"."t-1"', ("Odd Names", "t-1")),
        ('shop."a.b""c"', ("shop", 'a.b"c')),
        ("`my db`.`t`", ("my db", "t")),
        (" shop . events ", ("shop", "events")),
    ],
)
def test_a_name_is_read_as_sql_reads_it(text: str, parts: tuple[str, ...]) -> None:
    assert split_name(text, fold=str.lower) == parts


@pytest.mark.parametrize("text", ["", ".", "a.", "a b", '"a', 'a"b"', "a;drop table b"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a name"):
        split_name(text, fold=str.lower)


def test_a_quote_within_a_name_stays_within() -> None:
    assert quote('a"; drop table b; --') == '"a""; drop table b; --"'
    assert quote("a`b", "`") == "`a``b`"


@pytest.mark.parametrize(
    ("lexis", "sql", "names"),
    [
        ("postgres", "a > :x and b = ':no' and c = E'it\\':no' and \"d:no\" = $t$ :no $t$ -- :no", ("x",)),
        ("postgres", "e::text = :y /* :no */ and f = 'it''s :no' and i[1:2] = 1 and j := 5", ("y",)),
        ("postgres", "a = '\\' and b = :x", ("x",)),  # with standard_conforming_strings a backslash is one
        ("postgres", "a = date'2020-01-01' and b = 'x\\' and c = :x", ("x",)),  # no E before a string
        ("postgres", "/* /* :no */ :no */ a = :x", ("x",)),
        ("postgres", "a = $täg$ $t$ :no $täg$ and b = :x", ("x",)),
        ("postgres", "a[lo:hi] = b[:x] and c[1 :hi] = 1 and array[case when :y then 1 end] = d", ("x", "y")),
        ("postgres", "j @? '$.a:no' and j ? :x", ("x",)),
        ("mysql", "a = 'it\\'s :no' and b = :x", ("x",)),
        ("mysql", 'a = "it\\"s :no" and `b:no` = :x # :no', ("x",)),
        ("mysql", "a = 5--1 and b = :x -- :no", ("x",)),
        ("sqlite", "a = '\\' and b = :x and [c:no] = 1", ("x",)),
        ("sqlite", "a = /* /* :no */ :x", ("x",)),
    ],
)
def test_only_colons_outside_of_strings_names_and_comments_are_parameters(
    lexis: Lexis, sql: str, names: tuple[str, ...]
) -> None:
    assert parameter_names(sql, lexis=lexis) == names
    assert bind_named(sql, lambda name: f":{name}", lexis=lexis) == sql


def test_the_nearest_name_is_offered_whatever_its_case() -> None:
    assert nearest("evnts", ["Events", "users"]) == "did you mean 'Events'?"
    assert nearest("zzz", ["Events"]) == ""


@pytest.mark.parametrize(
    ("tables", "hint"),
    [
        (["orders", "users"], "did you mean 'orders'?"),
        (["users", "events"], "tables: events, users"),
        ([f"t{i:02}" for i in range(11)], "tables: t00, t01, t02, t03, t04, t05, t06, t07, t08, t09, ..."),
        ([], "the database has no tables that this user sees"),
    ],
)
def test_a_wrong_table_is_answered_with_the_nearest_one_or_with_those_that_are_there(
    tables: list[str], hint: str
) -> None:
    assert nearest_table("ordrs", tables) == hint
