"""Keys of MySQL and MariaDB: for every type, collation and label, pages by key give each row exactly once, or the key
is refused by name before anything is read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest

from producer.errors import ConfigError, EncodeError, PermanentError
from producer.model import Position
from producer.sources.sql import SqlSource
from tests.integration.sql_reading import open_source, stream

_TEXTS = (
    *(
        "a",
        "A",
        "b",
        "aa",
        "ab",
        "Z",
        "_",
        "0",
        "10",
        "9",
        " a",
        "a ",
        "a  b",
        "a-b",
        "a'b",
        "'",
        "''",
        '"',
        "\\",
        "\\'",
    ),
    *("a\\", "\\n", "a\nb", "a\rb", "a\tb", "a\0", "\0", "a\x01", "a\x1a", "%", "%s", "%%", ":x", "?", "`", "a;b", "ä"),
    *(
        "Ä",
        "é",
        "e",
        "ß",
        "ss",
        "ı",
        "I",
        "i",
        "İ",
        "ñ",
        "ø",
        "þ",
        "ю",
        "я",
        "ё",
        "あ",
        "漢",
        "가",
        "ก",
        "א",
        "ﬁ",
        "😀",
        "𝒳",
    ),
)
_BYTES = (b"", b"\0", b"\0\0", b"'", b'"', b"A", b"\\", b"\\A", b"\\'", b"a", b"a\0", b"a ", b"\x80", b"%s", b"\xff")
_LABELS = (
    "z\\y",
    "a",
    "m",
    "n\nl",
    "q'q",
    'd"q',
    "t\tt",
    "nul\0",
    "s\x1a",
    "r\rr",
    "ä",
    "😀",
    "?",
    "????",
    "%s",
    "b\\",
)

#: A type a line, and values as SQL.
_LITERALS = """
tinyint                  | -128 | -1 | 0 | 1 | 127
tinyint unsigned         | 0 | 127 | 128 | 255
boolean                  | 0 | 1
smallint                 | -32768 | 0 | 32767
mediumint                | -8388608 | 0 | 8388607
int                      | -2147483648 | -1 | 0 | 2147483647
int(9) zerofill          | 0 | 1 | 4294967295
bigint                   | -9223372036854775808 | -1 | 0 | 9007199254740993 | 9223372036854775806 | 9223372036854775807
bigint unsigned          | 0 | 9223372036854775807 | 9223372036854775808 | 18446744073709551615
decimal(10,0)            | -9999999999 | -1 | 0 | 1 | 9999999999
decimal(65,30)           | -12345678901234567890123456789012345.5 | -1e-30 | 0 | 1e-30 | 2e-30 | 9999999999999
decimal(38,38)           | -0.99999999999999999999999999999999999999 | 0 | 1e-38 | 2e-38
decimal(6,2) unsigned    | 0 | 0.01 | 0.1 | 9999.99
float                    | -3.4e38 | -1 | -1e-38 | 0 | 1e-45 | 0.1 | 0.2 | 0.3 | 16777216 | 16777218 | 3.4e38
float(10,3)              | -0.001 | 0 | 0.1 | 0.111 | 0.112 | 1234567.891
double                   | -1.7976931348623157e308 | -0.1 | 5e-324 | 0.1e0+0.2e0 | 0.3 | 1e16 | 1.7976931348623157e308
double(20,5)             | -0.00001 | 0 | 0.1 | 0.11111 | 123456789012.12345
bit(1)                   | 0 | 1
bit(20)                  | 0 | 1 | 34 | 39 | 92 | 256 | 1048575
bit(64)                  | 0 | 39 | 9223372036854775807 | 9223372036854775808 | 18446744073709551615
year                     | 0 | 1901 | 1970 | 2001 | 2069 | 2155
date                     | '0001-01-01' | '1001-01-01' | '1969-12-31' | '1970-01-01' | '2024-02-29' | '9999-12-31'
datetime                 | '0001-01-01' | '1969-12-31 23:59:59' | '2024-03-31 02:30:00' | '9999-12-31 23:59:59'
datetime(6)              | '2024-03-31 02:30:00' | '2024-03-31 02:30:00.000001' | '2024-03-31 02:30:00.999999'
datetime(3)              | '2024-03-31 02:30:00' | '2024-03-31 02:30:00.001' | '2024-03-31 02:30:00.999'
timestamp                | '1970-01-01 00:00:01' | '2024-03-31 01:30:00' | '2024-10-27 00:30:00' | '2024-10-27 01:30:00'
timestamp(6)             | '1970-01-01 00:00:01.000001' | '2024-10-27 00:30:00.5' | '2024-10-27 01:30:00.5'
enum('','b','a')         | 1 | 2 | 3
set('','b','a')          | 0 | 2 | 4 | 6
uuid                     | '00000000-0000-0000-0000-000000000000' | 'fe2770fe-7d04-11ee-b962-0242ac120002' \
                         | 'ee2770fe-7d04-11ee-b962-0242ac120002' | '6f9619ff-8b86-d011-b42d-00c04fc964ff' \
                         | 'ee2770fe-7d04-01ee-b962-0242ac120002' | '0187a1b2-0000-7000-8000-000000000000' \
                         | '0187a1b3-0000-7000-8000-000000000000' | 'ffffffff-ffff-ffff-ffff-ffffffffffff'
json                     | '1' | '10' | '2' | '"a\\\\n"' | '"a"' | '[]' | '{"a": 1}' | 'null'
inet4                    | '0.0.0.0' | '9.0.0.1' | '10.0.0.1' | '255.255.255.255'
inet6                    | '::' | '::1' | '10::1' | '::ffff:1.2.3.4' | '9::' | 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'
"""

#: A type a line, which holds texts.
_OF_TEXTS = """
varchar(9) collate utf8mb4_general_ci
char(9) collate utf8mb4_general_ci
varchar(9) collate utf8mb4_bin
char(9) collate utf8mb4_bin
varchar(9) collate utf8mb4_unicode_ci
varchar(9) collate utf8mb4_unicode_520_nopad_ci
varchar(9) collate utf8mb4_nopad_bin
varchar(9) collate utf8mb4_turkish_ci
varchar(9) collate utf8mb4_german2_ci
varchar(9) collate utf8mb4_uca1400_as_cs
varchar(9) collate utf8mb4_uca1400_nopad_ai_ci
varchar(9) collate utf8mb3_general_ci
char(9) collate utf8mb3_bin
varchar(9) collate latin1_swedish_ci
char(9) collate latin1_bin
varchar(9) collate latin1_german2_ci
varchar(9) collate latin2_czech_cs
varchar(9) collate ucs2_general_ci
char(9) collate ucs2_bin
varchar(9) collate utf16_unicode_ci
varchar(9) collate utf16_bin
varchar(9) collate utf16le_general_ci
varchar(9) collate utf32_general_ci
varchar(9) collate koi8r_general_ci
varchar(9) collate tis620_thai_ci
varchar(9) collate cp1250_czech_cs
varchar(9) collate gbk_chinese_ci
tinytext
text
mediumtext
longtext
text character set latin1
"""

#: Types whose values ORDER BY has in another order than comparisons, or that are not compared at all.
_REFUSED = (
    "time",
    "time(6)",
    "char(9) collate utf8mb4_general_nopad_ci",
    "char(9) collate latin1_swedish_nopad_ci",
    "point",
    "geometry",
    "set(" + ",".join(f"'m{bit}'" for bit in range(64)) + ")",
)


@dataclass(frozen=True)
class Case:
    """A column of type `sql` and its values as SQL."""

    sql: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.sql[:60].encode("ascii", "backslashreplace").decode()


def _hex(value: str | bytes) -> str:
    return f"x'{value.hex()}'" if isinstance(value, bytes) else f"_utf8mb4 x'{value.encode().hex()}'"


def _texts(sql: str) -> Case:
    """Ten of the texts, others for each type, the empty one among them."""
    return Case(sql, tuple(map(_hex, ["", *random.Random(sql).sample(_TEXTS, 9)])))


def _raw(charset: str) -> Case:
    """Bytes of which some are no character, or none that Unicode has, or one of those that it has twice."""
    values = [b"", b"?", b"A", b"\\", b"~", b"\x7f", b"\x81\x40", b"\x81\x5f", b"\x81\xad", b"\xa1\xa1", b"\xa1\xfe"]
    values += [b"\x87\x9a", b"\x81\xe6", b"\xa2\xe8", b"\x98", b"\x80", b"\xff", b"\xa5", b"\xdc"]
    return Case(f"varchar(9) character set {charset}", tuple(f"_binary {_hex(value)}" for value in values))


def _labels(kind: str, charset: str, count: int) -> Case:
    listed = ", ".join("'" + label.replace("\\", "\\\\").replace("'", "''") + "'" for label in _LABELS[:count])
    values = range(1, count + 1) if kind == "enum" else [0, *(1 << bit for bit in range(count)), (1 << count) - 1, 3, 5]
    return Case(f"{kind}({listed}) character set {charset}", tuple(map(str, values)))


def _long(sql: str, length: int) -> Case:
    """Texts that differ only at their end."""
    return Case(sql, tuple(f"concat(repeat('x', {length}), {number * 7 % 11})" for number in range(11)))


def _written() -> Iterator[Case]:
    for line in filter(None, _LITERALS.replace("\\\n", "").splitlines()):
        sql, *values = line.split(" | ")
        yield Case(sql.strip(), tuple(values))


CASES = (
    *_written(),
    *(_texts(sql) for sql in _OF_TEXTS.split("\n") if sql),
    *(_raw(charset) for charset in ("ascii", "latin1", "cp1251", "swe7", "hebrew", "sjis", "cp932", "gbk", "euckr")),
    *(
        Case(sql, tuple(map(_hex, _BYTES)))
        for sql in ("varbinary(30)", "binary(3)", "char(4) byte", "tinyblob", "blob")
    ),
    *(_long("varchar(3000) character set latin1", 2500), _long("text", 5000), _long("longblob", 16_000)),
    *(_labels("enum", "utf8mb4", 16), _labels("enum", "latin1", 11)),
    *(_labels("set", "utf8mb4", 16), _labels("set", "ucs2", 10)),
)


@pytest.fixture(scope="module")
def connection(mariadb_url: str) -> Iterator[pymysql.Connection[Any]]:
    parts = urlsplit(mariadb_url)
    with closing(
        pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=parts.username,
            password=parts.password or "",
            database=parts.path.lstrip("/"),
            charset="utf8mb4",
            init_command="set sql_mode = 'NO_ENGINE_SUBSTITUTION', time_zone = '+00:00'",
            autocommit=True,
        )
    ) as found:
        yield found


def run(connection: pymysql.Connection[Any], sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def make(connection: pymysql.Connection[Any], case: Case) -> list[int]:
    """The table ``one`` with the key k, ``two`` with (k, i) and ``loose``, a view of it; the values i of ``one``.

    Of values that are equal to the type the first is kept.
    """
    run(connection, "drop table if exists one, two")
    index = "unique" if case.sql.startswith(("tiny", "text", "medium", "long", "blob", "json")) else "primary key"
    run(connection, f"create table one (k {case.sql} not null, i int not null, {index} (k))")
    for number, value in enumerate(case.values):  # one by one: a statement with a text that is none stores nothing
        try:
            run(connection, f"insert ignore into one values ({value}, {number})")
        except pymysql.err.DataError:
            continue
    run(connection, "create table two as select o.k, o.i * 3 + s.seq i from one o join seq_0_to_2 s")
    run(connection, "create or replace view loose as select * from one")
    return [row[0] for row in run(connection, "select i from one order by i")]


async def read(source: SqlSource, **settings: Any) -> list[int]:
    """The values of i that arrived, those of bad records among them, in ascending order."""
    config = stream(**settings)
    dataset = await source.describe(config)
    found: list[int] = []
    for split in await source.plan(config, dataset):
        reader = await source.reader(config, dataset, split)
        position: Position | None = None
        try:
            async with asyncio.timeout(30):  # the same page again and again is what a wrong order may come to
                while True:
                    page = await reader.fetch(position, config.page_size)
                    found += page.batch.column("i").to_pylist()
                    found += [row.columns.column("i")[0].as_py() for row in page.rejected]
                    position = page.position
                    if page.last:
                        break
        finally:
            await reader.close()
    return sorted(found)


_WAYS: tuple[dict[str, Any], ...] = (
    {"table": "one", "page_size": 1, "max_parallel": 1},
    {"table": "one", "page_size": 2, "max_parallel": 3},
    {"table": "one", "page_size": 7, "max_parallel": 1},
    {"table": "one", "page_size": 2, "traversal": "OFFSET"},
    {"table": "two", "page_size": 7, "max_parallel": 3, "key": ["k", "i"]},
    {"table": "loose", "page_size": 2, "max_parallel": 3, "key": ["k"]},
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_every_row_of_every_kind_of_key_arrives_once(
    mariadb_url: str, connection: pymysql.Connection[Any], case: Case
) -> None:
    rows = make(connection, case)
    assert rows
    async with open_source(mariadb_url) as source:
        for way in _WAYS:
            expected = rows if way["table"] != "two" else [row * 3 + part for row in rows for part in range(3)]
            assert await read(source, on_bad_record="dead_letter", **way) == expected, way


@pytest.mark.parametrize("sql", _REFUSED)
async def test_a_key_that_is_sorted_in_another_way_than_compared_is_refused(
    mariadb_url: str, connection: pymysql.Connection[Any], sql: str
) -> None:
    run(connection, "drop table if exists one")
    run(connection, f"create table one (k {sql} not null, i int not null)")
    async with open_source(mariadb_url) as source:
        with pytest.raises(ConfigError, match=r"column 'k' of type .* cannot order rows"):
            await source.describe(stream("one", key=["k"]))


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("date", ("0000-00-00", "2024-00-00", "2024-02-00", "2024-02-01", "2024-02-31")),
        ("datetime(6)", ("0000-00-00 00:00:00", "2024-00-00 00:00:01", "2024-02-31 00:00:00.5", "2024-03-01 00:00:00")),
        ("timestamp(6)", ("0000-00-00 00:00:00", "2024-02-01 00:00:00")),
    ],
)
async def test_keys_that_are_no_dates_are_bad_records_and_the_others_arrive(
    mariadb_url: str, connection: pymysql.Connection[Any], sql: str, values: tuple[str, ...]
) -> None:
    run(connection, "set sql_mode = 'ALLOW_INVALID_DATES'")
    rows = make(connection, Case(sql, tuple(f"'{value}'" for value in values)))
    run(connection, "set sql_mode = 'NO_ENGINE_SUBSTITUTION'")
    assert rows == list(range(len(values)))
    async with open_source(mariadb_url) as source:
        for size in (1, 2, 7):
            for splits in (1, 3):
                way = {"table": "one", "page_size": size, "max_parallel": splits}
                assert await read(source, on_bad_record="dead_letter", **way) == rows, way
        with pytest.raises(EncodeError, match=r"column 'k', row with key 0000-00-00"):
            await read(source, table="one")


async def test_a_key_without_a_label_is_not_taken_for_the_empty_label(
    mariadb_url: str, connection: pymysql.Connection[Any]
) -> None:
    for sql in ("enum('','b','a')", "set('b','','a')"):
        assert make(connection, Case(sql, ("0", "1", "2", "3"))) == [0, 1, 2, 3]
        async with open_source(mariadb_url) as source:
            assert await read(source, table="one", page_size=1, on_bad_record="dead_letter") == [0, 1, 2, 3]
            with pytest.raises(
                EncodeError, match=r"column 'k', row with key .*: the value . of .* reads as another one does"
            ):
                await read(source, table="one")


async def test_a_key_that_the_server_sorts_by_its_beginning_alone_is_refused(
    mariadb_url: str, connection: pymysql.Connection[Any]
) -> None:
    make(connection, _long("longtext", 20_000))
    async with open_source(mariadb_url) as source:
        with pytest.raises(PermanentError, match="column 'k': a key is longer than the 16384"):
            await read(source, table="one")
