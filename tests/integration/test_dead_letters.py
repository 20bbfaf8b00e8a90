"""Owns the claims about dead letters: each bad row is there once, all others arrive, and nothing masked shows."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fastavro
import pymysql
import pytest
import yaml
from adbc_driver_postgresql import dbapi

from producer.cli import main
from producer.config import load_config
from producer.metrics import Metrics
from producer.service import Service
from producer.sinks.dead_letters import KEY_SCHEMA, SCHEMA
from tests.integration.kafka_rows import read_topic

ROWS = 5000
EVERY = 1000
BAD = list(range(EVERY // 2, ROWS, EVERY))
_LETTER = fastavro.parse_schema(json.loads(json.dumps(SCHEMA)))
_LETTER_KEY = fastavro.parse_schema(json.loads(json.dumps(KEY_SCHEMA)))


@dataclass
class Shop:
    """A table of `ROWS` rows, and a configuration that reads it."""

    folder: Path
    bootstrap: str
    name: str

    def fill(self, columns: str, rows: Sequence[tuple[Any, ...]]) -> None:
        connection = sqlite3.connect(self.folder / "shop.db")
        with connection:
            connection.execute("DROP TABLE IF EXISTS t")
            connection.execute(f"CREATE TABLE t ({columns})")
            connection.executemany(f"INSERT INTO t VALUES ({','.join('?' * len(rows[0]))})", rows)
        connection.close()

    def write(self, more: Mapping[str, Any], **stream: Any) -> Path:
        path = self.folder / "producer.yaml"
        config = {
            "app": self.name,
            "kafka": {"bootstrap_servers": self.bootstrap},
            "sources": {"shop": {"type": "sql", "url": f"sqlite:///{self.folder / 'shop.db'}"}},
            "streams": [
                {"source": "shop", "table": "t", "topic": self.name, "partitions": 3, "on_bad_record": "dead_letter"}
                | stream
            ],
            **more,
        }
        path.write_text(yaml.safe_dump(config))
        return path

    async def run(self, more: Mapping[str, Any] | None = None, **stream: Any) -> str:
        """Runs to the end; the metrics' text."""
        metrics = Metrics()
        config = load_config(self.write(more or {}, **stream), {"SALT": "pepper and salt"})
        (summary,) = await Service(config, metrics=metrics, run_id="r").run(once=True, stop=asyncio.Event())
        assert summary.error is None
        assert (summary.state, summary.acked) == ("complete", ROWS)
        return metrics.text().decode()

    async def keys(self) -> list[int]:
        """The ids on the topic, from the records' keys (a long of Avro)."""
        schema = fastavro.parse_schema(
            {"type": "record", "name": "k", "fields": [{"name": "id", "type": "long"}]}  # as the derived key schema
        )
        found = [
            fastavro.schemaless_reader(io.BytesIO(record.key), schema, None)
            for record in await read_topic(self.bootstrap, self.name, isolation_level="read_committed")
        ]
        return sorted(key["id"] for key in found if isinstance(key, dict))

    async def letters(self) -> list[dict[str, Any]]:
        found = []
        for record in await read_topic(self.bootstrap, f"{self.name}.dlq", isolation_level="read_committed"):
            letter: Any = fastavro.schemaless_reader(io.BytesIO(record.value), _LETTER, None)
            key: Any = fastavro.schemaless_reader(io.BytesIO(record.key), _LETTER_KEY, None)
            assert key == {"stream": "t", "row_key": letter["row_key"]}
            found.append(letter)
        return sorted(found, key=lambda letter: str(letter["row"]))


@pytest.fixture
def shop(tmp_path: Path, kafka_bootstrap: str, unique: str) -> Shop:
    return Shop(tmp_path, kafka_bootstrap, unique)


def _bad_ids(letters: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted(json.loads(letter["row"])["id"] for letter in letters)


KINDS: dict[str, tuple[str, Any, Any, dict[str, Any], str]] = {
    "a value that does not fit the schema": (
        "n INTEGER",
        1,
        2**40,
        {"schema": "t.avsc"},
        "EncodeError",
    ),
    "a record that is too large": ("b BLOB", b"x", b"\0" * 3_000_000, {}, "RecordTooLargeError"),
    "a local time that its zone skips": (
        "a TIMESTAMP",
        "2024-07-01 12:00:00",
        "2024-03-31 02:30:00",
        {"transforms": [{"to_utc": ["a"], "zone": "Europe/Paris"}]},
        "EncodeError",
    ),
    "a value that cannot be cast": ("a TEXT", "1.5", "one", {"transforms": [{"cast": {"a": "double"}}]}, "EncodeError"),
    "a value that is not of its column's type": ("d DATE", "2024-01-01", "someday", {}, "EncodeError"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_every_poison_row_is_in_the_dead_letters_once_and_all_others_arrive(
    shop: Shop, kind: str, delivery: str
) -> None:
    declared, good, bad, stream, reason = KINDS[kind]
    shop.fill(f"id INTEGER PRIMARY KEY, {declared}", [(i, bad if i in BAD else good) for i in range(1, ROWS + 1)])
    (shop.folder / "t.avsc").write_text(
        json.dumps(
            {
                "type": "record",
                "name": "t",
                "fields": [{"name": "id", "type": "long"}, {"name": "n", "type": ["null", "int"]}],
            }
        )
    )
    more: dict[str, Any] = {"kafka": {"bootstrap_servers": shop.bootstrap, "compression": "none"}}
    if delivery == "exactly_once":
        more |= {"delivery": delivery, "checkpoints": {"type": "kafka"}}
    metrics = await shop.run(more, **stream)
    assert await shop.keys() == [i for i in range(1, ROWS + 1) if i not in BAD]
    letters = await shop.letters()
    assert _bad_ids(letters) == BAD
    assert {letter["reason"] for letter in letters} == {reason}
    assert {letter["complete"] for letter in letters} == {reason != "RecordTooLargeError"}
    for letter in letters:
        assert json.loads(letter["key"]) == {"id": json.loads(letter["row"])["id"]}
        after, upto = (json.loads(letter[f"position_{end}"] or "null") for end in ("after", "upto"))
        assert (after["key"][0] if after else 0) < json.loads(letter["key"])["id"] <= upto["key"][0]
    counts = [line for line in metrics.splitlines() if line.startswith("producer_dead_letters_total")]
    (count,) = [float(line.rpartition(" ")[2]) for line in counts if f'reason="{reason}"' in line]
    assert count == len(BAD)


async def test_what_is_masked_or_dropped_shows_in_no_letter(shop: Shop) -> None:
    shop.fill(
        "id INTEGER PRIMARY KEY, email TEXT, ssn TEXT, a TEXT",
        [(i, f"secret{i}", f"hidden{i}", "one" if i in BAD else "1") for i in range(1, ROWS + 1)],
    )
    await shop.run(
        transforms=[{"mask": ["email"], "salt": "${SALT}"}, {"drop": ["ssn"]}, {"cast": {"a": "int"}}],
    )
    letters = await shop.letters()
    assert _bad_ids(letters) == BAD
    assert {tuple(json.loads(letter["row"])) for letter in letters} == {("id", "a")}
    assert "secret" not in str(letters) + str(await read_topic(shop.bootstrap, f"{shop.name}.dlq"))


async def test_a_masked_key_shows_in_no_letter(shop: Shop) -> None:
    shop.fill(
        "id INTEGER PRIMARY KEY, a TEXT", [(i + 7_000_000, "one" if i in BAD else "1") for i in range(1, ROWS + 1)]
    )
    await shop.run(transforms=[{"mask": ["id"], "salt": "${SALT}"}, {"cast": {"a": "int"}}])
    records = await read_topic(shop.bootstrap, f"{shop.name}.dlq")
    assert len(records) == len(BAD)
    assert "7000" not in str(records)


async def test_with_fail_a_poison_row_stops_the_stream_and_makes_no_letter(shop: Shop) -> None:
    shop.fill("id INTEGER PRIMARY KEY, a TEXT", [(1, "1"), (2, "one")])
    path = shop.write({}, on_bad_record="fail", transforms=[{"cast": {"a": "int"}}])
    (summary,) = await Service(load_config(path, {}), metrics=Metrics(), run_id="r").run(
        once=True, stop=asyncio.Event()
    )
    assert summary.state == "failed"
    assert summary.error is not None
    assert "id=2" in summary.error


async def test_many_bad_rows_in_a_page_are_put_aside_too(shop: Shop) -> None:
    shop.fill("id INTEGER PRIMARY KEY, a TEXT", [(i, "one" if i % 5 == 0 else "1") for i in range(1, ROWS + 1)])
    await shop.run(transforms=[{"cast": {"a": "int"}}])
    assert await shop.keys() == [i for i in range(1, ROWS + 1) if i % 5]
    assert _bad_ids(await shop.letters()) == list(range(5, ROWS + 1, 5))


def _told(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, Any]:
    code = main(["dead-letters", *args, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def _main(*args: str) -> int:
    return main(["dead-letters", *args])


async def test_list_shows_letters_and_replay_sends_what_has_been_mended(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALT", "pepper and salt")
    shop.fill(
        "id INTEGER PRIMARY KEY, a TEXT, d DATE",
        [(i, "one" if i in BAD else "1", "someday" if i == 7 else "2024-01-01") for i in range(1, ROWS + 1)],
    )
    stream: dict[str, Any] = {"transforms": [{"cast": {"a": "int"}}]}
    await shop.run(**stream)
    path = str(shop.write({}, **stream))
    code, letters = await asyncio.to_thread(_told, capsys, "list", path, "t")
    assert code == 0
    assert sorted(json.loads(letter["key"])["id"] for letter in letters) == [7, *BAD]
    assert await asyncio.to_thread(_main, "list", path, "t") == 0
    assert '{"id":7}' in capsys.readouterr().out

    connection = sqlite3.connect(shop.folder / "shop.db")
    with connection:
        connection.execute("UPDATE t SET a = '12' WHERE id = ?", (BAD[0],))
        connection.execute("UPDATE t SET d = '2024-01-02' WHERE id = 7")
        connection.execute("DELETE FROM t WHERE id = ?", (BAD[1],))
    connection.close()
    code, told = await asyncio.to_thread(_told, capsys, "replay", path, "t")
    assert (code, told) == (
        1,
        {"stream": "t", "sent": 2, "failed_again": len(BAD) - 2, "not_found": 1, "not_to_be_found": 0},
    )
    assert await shop.keys() == sorted({*range(1, ROWS + 1)} - {*BAD[1:]})
    code, letters = await asyncio.to_thread(_told, capsys, "list", path, "t")
    assert sorted(json.loads(letter["key"])["id"] for letter in letters) == BAD[1:]

    connection = sqlite3.connect(shop.folder / "shop.db")
    with connection:
        connection.execute("UPDATE t SET a = '7' WHERE a = 'one'")
    connection.close()
    code, told = await asyncio.to_thread(_told, capsys, "replay", path, "t")
    assert (told["sent"], told["failed_again"], told["not_found"]) == (len(BAD) - 2, 0, 1)
    # Without the cast the topic would hold text where it has held numbers.
    assert await asyncio.to_thread(_main, "replay", str(shop.write({})), "t") == 1
    assert "field 'a'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stream", "late", "mended"),
    [
        (
            {"mode": "tail", "start": "beginning"},
            (4, "2024-01-01 00:00:00", "one"),
            "UPDATE t SET a = '4' WHERE id = 4",
        ),
        (
            {"mode": "timestamp", "order_by": ["changed_at"]},
            (6, "2024-01-02 00:00:00", "one"),
            "UPDATE t SET a = '6', changed_at = '2024-03-01 00:00:00' WHERE id = 6",
        ),
    ],
    ids=["came late", "was moved by its mending"],
)
async def test_a_row_that_is_not_where_its_page_was_is_replayed_by_its_key(
    shop: Shop, capsys: pytest.CaptureFixture[str], stream: dict[str, Any], late: tuple[Any, ...], mended: str
) -> None:
    shop.fill(
        "id INTEGER PRIMARY KEY, changed_at TIMESTAMP NOT NULL, a TEXT",
        [(i, "2024-01-01 00:00:00", "1") for i in (1, 3, 5)],
    )
    path = shop.write({}, **stream, transforms=[{"cast": {"a": "int"}}])
    for rows in ([], [late]):
        with sqlite3.connect(shop.folder / "shop.db") as table:
            table.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
        await Service(load_config(path), metrics=Metrics(), run_id="r").run(once=True, stop=asyncio.Event())
    assert await shop.keys() == [1, 3, 5]
    assert len(await shop.letters()) == 1
    table.execute(mended)
    table.commit()
    table.close()
    code, told = await asyncio.to_thread(_told, capsys, "replay", str(path), "t")
    assert (code, told["sent"], told["not_found"]) == (0, 1, 0)
    assert await shop.keys() == sorted([1, 3, 5, late[0]])


async def test_without_letters_there_is_nothing_to_do(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.fill("id INTEGER PRIMARY KEY", [(1,)])
    path = str(shop.write({}))
    assert await asyncio.to_thread(_told, capsys, "list", path, "t") == (0, [])
    code, told = await asyncio.to_thread(_told, capsys, "replay", path, "t")
    assert (code, told["sent"]) == (0, 0)


async def test_infinite_times_of_postgresql_are_put_aside_with_lists_and_wrong_arrays_around(
    shop: Shop, postgres_dsn: str
) -> None:
    with dbapi.connect(postgres_dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE t AS SELECT g::int8 AS id, CASE WHEN g % 1000 = 500 THEN 'infinity' ELSE now() END AS moment,"
            f" ARRAY['2024-01-01', CASE WHEN g % 1000 = 7 THEN '-infinity' END]::date[] AS days,"
            f" CASE WHEN g % 1000 = 9 THEN '{{{{1}},{{2}}}}'::int[] ELSE ARRAY[g] END AS numbers"
            f" FROM generate_series(1, {ROWS}) g"
        )
        cursor.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
    await shop.run({"sources": {"shop": {"type": "sql", "url": postgres_dsn}}})
    bad = [i for i in range(1, ROWS + 1) if i % 1000 in (7, 9, 500)]
    assert await shop.keys() == [i for i in range(1, ROWS + 1) if i not in bad]
    assert _bad_ids(await shop.letters()) == bad


async def test_zero_dates_of_mariadb_are_put_aside(shop: Shop, mariadb_url: str) -> None:
    at = urlsplit(mariadb_url)
    with (
        contextlib.closing(
            pymysql.connect(
                host=at.hostname,
                port=at.port or 3306,
                user=at.username,
                password=at.password or "",
                database=at.path.strip("/"),
                autocommit=True,
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, d DATE)")
        rows = [(i, "0000-00-00" if i in BAD else "2024-01-01") for i in range(1, ROWS + 1)]
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows)
    await shop.run({"sources": {"shop": {"type": "sql", "url": mariadb_url}}})
    assert await shop.keys() == [i for i in range(1, ROWS + 1) if i not in BAD]
    letters = await shop.letters()
    assert _bad_ids(letters) == BAD
    assert {json.loads(letter["row"])["d"] for letter in letters} == {"0000-00-00"}


@pytest.mark.parametrize("rows", [64, 65, 100])
async def test_a_page_whose_last_row_or_whose_every_row_is_bad_is_passed(shop: Shop, rows: int) -> None:
    shop.fill(
        "id INTEGER PRIMARY KEY, d DATE",
        [(i, "someday" if i <= 64 or i in (rows, ROWS) else "2024-01-01") for i in range(1, ROWS + 1)],
    )
    await shop.run(page_size=64)
    bad = sorted({*range(1, 65), rows, ROWS})
    assert await shop.keys() == [i for i in range(1, ROWS + 1) if i not in bad]
    assert _bad_ids(await shop.letters()) == bad


@pytest.mark.parametrize("repeated", [False, True])
async def test_keys_that_no_index_proves_are_still_proven_around_bad_rows(shop: Shop, repeated: bool) -> None:
    rows = [(i, "someday" if i % 64 in (0, 1) else "2024-01-01") for i in range(1, ROWS + 1)]
    if repeated:
        rows[64] = (64, "someday")
    shop.fill("id INTEGER NOT NULL, d DATE", rows)
    config = load_config(shop.write({}, key=["id"], page_size=64), {})
    (summary,) = await Service(config, metrics=Metrics(), run_id="r").run(once=True, stop=asyncio.Event())
    if repeated:
        assert "several rows have the key" in str(summary.error)
    else:
        assert summary.error is None
        assert await shop.keys() == [i for i, day in rows if day != "someday"]
        assert _bad_ids(await shop.letters()) == [i for i, day in rows if day == "someday"]


async def test_offset_pages_count_the_rows_that_are_put_aside(shop: Shop) -> None:
    shop.fill("id INTEGER PRIMARY KEY, d DATE", [(i, "x" if i in BAD else "2024-01-01") for i in range(1, ROWS + 1)])
    await shop.run(traversal="OFFSET", page_size=500)
    assert await shop.keys() == [i for i in range(1, ROWS + 1) if i not in BAD]
    assert _bad_ids(await shop.letters()) == BAD


async def test_with_a_registry_letters_are_framed_and_can_be_listed(
    shop: Shop, registry_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.fill("id INTEGER PRIMARY KEY, a TEXT", [(i, "one" if i in BAD else "1") for i in range(1, ROWS + 1)])
    registry = {"schema_registry": {"url": registry_url}}
    await shop.run(registry, transforms=[{"cast": {"a": "int"}}])
    records = await read_topic(shop.bootstrap, f"{shop.name}.dlq")
    assert {(record.key[0], record.value[0]) for record in records} == {(0, 0)}
    path = str(shop.write(registry))
    code, told = await asyncio.to_thread(_told, capsys, "list", path, "t")
    assert (code, len(told)) == (0, len(BAD))
