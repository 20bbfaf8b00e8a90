"""Literals of MySQL: the same value under every sql_mode, and nothing that a value could end."""

from __future__ import annotations

import datetime as dt
import decimal
import re
import uuid
from typing import Any

import pytest

from producer.errors import ConfigError
from producer.sources.sql.mysql_session import literal
from producer.sources.sql.mysql_types import ordinal


@pytest.mark.parametrize(
    ("value", "sql_type", "written"),
    [
        (None, "", "NULL"),
        (True, "", "1"),
        (2**64 - 1, "", "18446744073709551615"),
        (0.1, "", "0.1e0"),
        (-5e-324, "", "-5e-324"),
        (decimal.Decimal("1E+3"), "", "1000"),
        (decimal.Decimal("1E-38"), "", "0.00000000000000000000000000000000000001"),
        ("plain text, 5% & more", "", "'plain text, 5% & more'"),
        ("", "", "_utf8mb4 x''"),
        ("it's", "", "_utf8mb4 x'69742773'"),
        ("\\", "", "_utf8mb4 x'5c'"),
        ('"', "", "_utf8mb4 x'22'"),
        ("a\n", "", "_utf8mb4 x'610a'"),
        ("ä", "", "_utf8mb4 x'c3a4'"),
        (b"'\\", "varbinary(9)", "_binary x'275c'"),
        (b"\x98", "varchar(9) character set cp1251", "_cp1251 x'98'"),
        (uuid.UUID(int=1), "uuid", "'00000000-0000-0000-0000-000000000001'"),
        (dt.datetime(2024, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))), "", "'2024-01-01 00:00:00'"),
        (dt.datetime(1, 1, 1, 0, 0, 0, 1), "", "'0001-01-01 00:00:00.000001'"),
        (dt.date(2024, 2, 29), "", "'2024-02-29'"),
    ],
)
def test_a_value_is_written_in_one_way(value: Any, sql_type: str, written: str) -> None:
    assert literal(value, sql_type) == written


@pytest.mark.parametrize("value", [float("inf"), float("nan"), decimal.Decimal("NaN"), {"a": 1}, object()])
def test_what_mysql_cannot_have_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"params: MySQL takes no"):
        literal(value)


@pytest.mark.parametrize("code", range(128))
def test_no_character_ends_a_literal(code: int) -> None:
    assert re.fullmatch(r"'[^'\\]+'|_utf8mb4 x'([0-9a-f]{2})+'", literal(f"a{chr(code)}b"))


@pytest.mark.parametrize(
    ("sql_type", "value", "number"),
    [
        ("enum('a','b')", "b", 2),
        ("enum('a','b')", "", 0),
        ("enum('','b')", "", 1),
        ("enum('z\\\\y','n\\nl','q''q','nul\\0')", "z\\y", 1),
        ("enum('z\\\\y','n\\nl','q''q','nul\\0')", "n\nl", 2),
        ("enum('z\\\\y','n\\nl','q''q','nul\\0')", "q'q", 3),
        ("enum('z\\\\y','n\\nl','q''q','nul\\0')", "nul\0", 4),
        ("set('a','b','c')", "a,c", 5),
        ("set('a','b','c')", "", 0),
        ("bit(20)", b"\x01\x00", 256),
        ("varchar(9)", "a", "a"),
    ],
)
def test_a_label_is_found_by_the_number_that_orders_it(sql_type: str, value: Any, number: Any) -> None:
    assert ordinal(sql_type, value) == number


@pytest.mark.parametrize(
    ("sql_type", "value"), [("enum('a','b')", "c"), ("enum('????')", "😀"), ("set('a','b')", "a,c")]
)
def test_a_text_that_is_no_label_is_refused(sql_type: str, value: str) -> None:
    with pytest.raises(ConfigError, match="is no value of"):
        ordinal(sql_type, value)
