"""`producer verify` sees what a run lost or changed, whatever misled the run: each loss is made here on purpose."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import producer.postgres as postgres_settings
import producer.verify.run as verify_run
from producer.config import Config, load_config
from producer.coordination.units import whole_state
from producer.errors import OtherQueryError, SourceUnavailableError
from producer.kafka import topic_partitions
from producer.metrics import Metrics
from producer.model import KeyPosition, ScannedPage, StreamState
from producer.parts import make_store
from producer.service import Service
from producer.sources.sql import SqlSource, keyset
from producer.sources.sql.table import Query
from producer.verify import Counts, verify
from producer.verify.report import Verified
from tests.sql import TABLES, Databank, databank


@dataclass
class Stream:
    """The table ``x`` of a database, which is streamed to a topic."""

    bank: Databank
    folder: Path
    bootstrap: str
    name: str
    settings: Mapping[str, Any]

    @property
    def config(self) -> Config:
        document = {
            "app": self.name,
            "kafka": {"bootstrap_servers": self.bootstrap},
            "checkpoints": {"type": "file", "path": str(self.folder / "state")},
            "sources": {"s": {"type": "sql", "url": self.bank.url}},
            "streams": [{"source": "s", "table": "x", "topic": self.name, "partitions": 1} | dict(self.settings)],
        }
        path = self.folder / "producer.yaml"
        path.write_text(yaml.safe_dump(document))
        return load_config(path)

    async def run(self) -> None:
        (summary,) = await Service(self.config, metrics=Metrics(), run_id="test").run(once=True, stop=asyncio.Event())
        assert summary.error is None, summary.error

    async def verify(self) -> Verified:
        config = self.config
        return await verify(config, config.streams[0], Counts())


Make = Callable[..., Stream]


@pytest.fixture(params=TABLES)
def dialect(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path, kafka_bootstrap: str, unique: str) -> Iterator[Make]:
    """Makes the stream of a table ``x``: its database, columns and rows, and the stream's settings."""
    banks: list[Databank] = []

    def made(dialect: str, columns: str, rows: Sequence[tuple[Any, ...]] = (), **settings: Any) -> Stream:
        bank = databank(dialect, request, tmp_path)
        banks.append(bank)
        bank.run("drop table if exists x")
        bank.run(f"create table x ({columns})")
        if rows:
            bank.insert("x", rows)
        return Stream(bank, tmp_path, kafka_bootstrap, unique, settings)

    yield made
    for bank in banks:
        bank.run("drop table if exists x")
        bank.close()


@contextlib.contextmanager
def wrong_comparison(monkeypatch: pytest.MonkeyPatch, skipped: str) -> Iterator[None]:
    """A run whose page condition passes over some rows, as one does that compares keys otherwise than they sort."""
    right = keyset.key_query

    def wrong(selection: keyset.Selection, *arguments: Any, **named: Any) -> Query:
        return right(keyset.also(selection, f"NOT ({skipped})"), *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(keyset, "key_query", wrong)
        yield


KEYS = [
    (
        "mariadb",
        "k varbinary(30) primary key, v int",
        [(bytes.fromhex(k), 1) for k in ("00", "10", "20", "41", "5c", "5c41", "61")],
        "t.k in (x'5c', x'5c41')",
        ["k=b'\\\\'", "k=b'\\\\A'"],
    ),
    (
        "mariadb",
        r"k enum('z\\y','a','m') primary key, v int",
        [("a", 1), ("m", 2), ("z\\y", 3)],
        "t.k + 0 in (2, 3)",
        ["k=a", "k=m"],
    ),
    ("mariadb", "k set('a','b','c') primary key, v int", [("a", 1), ("b", 2), ("a,b", 3)], "t.k + 0 = 2", ["k=b"]),
    ("mariadb", "k varchar(9) primary key, v int", [("a", 1), ("B", 2), ("c", 3)], "t.k = 'b'", ["k=B"]),
    ("postgres", "k bytea primary key, v int", [("\\x27", 1), ("\\x5c", 2)], r"t.k = '\x27'", ['k=b"\'"']),
    ("postgres", 'k text collate "C" primary key, v int', [("a", 1), ("B", 2)], "t.k = 'B'", ["k=B"]),
    ("postgres", "k numeric primary key, v int", [("1.50", 1), ("2", 2)], "t.k = 1.5", ["k=1.50"]),
    ("postgres", "a int, b int, primary key (a, b)", [(1, 1), (1, 2), (2, 1)], "t.b = 1", ["a=1, b=1", "a=2, b=1"]),
    ("sqlite", "k text collate NOCASE primary key, v int", [("a", 1), ("B", 2)], "t.k = 'b'", ["k=B"]),
    ("sqlite", "k date primary key not null", [("2024-01-01",), ("2024-01-02",)], "t.k > '2024-01-01'", None),
]


@pytest.mark.parametrize(("dialect", "columns", "rows", "skipped", "missing"), KEYS)
async def test_rows_that_a_page_condition_skips_are_missing(
    dialect: str,
    columns: str,
    rows: Sequence[tuple[Any, ...]],
    skipped: str,
    missing: list[str] | None,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = make(dialect, columns, rows, page_size=1, max_parallel=1)
    with wrong_comparison(monkeypatch, skipped):
        await stream.run()
    found = await stream.verify()
    assert not found.agrees
    assert found.missing == (["k=2024-01-02"] if missing is None else missing)
    assert (found.unexpected, found.differing) == ([], [])


async def test_nothing_of_the_page_readers_is_used(dialect: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(dialect, "a int, b varchar(9), primary key (a, b)", [(a, b) for a in (1, 2) for b in "xyz"])
    await stream.run()

    def used(*_: Any, **__: Any) -> Any:
        raise AssertionError("a part of the page readers")

    for part in ("key_query", "offset_query", "_compare", "_bounds"):
        monkeypatch.setattr(keyset, part, used)
    monkeypatch.setattr(SqlSource, "reader", used)
    monkeypatch.setattr(SqlSource, "plan", used)
    stream.bank.run("delete from x where a = 2 and b = 'z'")  # the last position is gone
    found = await stream.verify()
    assert (found.missing, found.unexpected) == ([], ["a=2, b=z"])


NULLABLE = {
    "postgres": ["id int, code text unique, v int"],
    "mariadb": ["id int, code varchar(20) unique, v int"],
    "sqlite": [
        "id int, code text unique, v int",
        "id int, code text primary key, v int",
        "id int, code int primary key, v int",
        "id int, code text, v int, primary key (code, v)",
    ],
}


@pytest.mark.parametrize(("dialect", "columns"), [(d, columns) for d in NULLABLE for columns in NULLABLE[d]])
async def test_rows_without_a_key_are_counted(dialect: str, columns: str, make: Make) -> None:
    key = {} if "primary key" in columns else {"key": ["code"]}
    stream = make(dialect, columns, [(1, "1", 1), (2, "2", 2)], mode="snapshot_then_tail", **key)
    await stream.run()
    assert (await stream.verify()).agrees
    stream.bank.insert("x", [(3, None, 3), (4, None, 4)])
    found = await stream.verify()
    assert not found.agrees
    assert found.comparison.null_keys == {"code": 2}
    assert (found.comparison.missing, found.comparison.unexpected) == (0, 0)
    assert found.to_json()["null_keys"] == {"code": 2}


async def test_rows_without_a_time_are_counted(dialect: str, make: Make) -> None:
    rows = [(1, "2024-01-01 00:00:01"), (2, "2024-01-01 00:00:02")]
    stream = make(dialect, "id int primary key, at timestamp null", rows, mode="timestamp", order_by=["at"])
    await stream.run()
    stream.bank.run("insert into x values (3, null)")
    stream.bank.run("update x set at = null where id = 1")  # it is on the topic, with another time
    found = await stream.verify()
    assert found.comparison.null_keys == {"at": 2}
    assert found.comparison.unexpected == 0


async def test_a_row_that_commits_behind_the_position_of_mode_timestamp_is_missing(dialect: str, make: Make) -> None:
    rows = [(1, "2024-01-01 00:00:01"), (2, "2024-01-01 00:00:03")]
    stream = make(dialect, "id int primary key, at timestamp", rows, mode="timestamp", order_by=["at"])
    await stream.run()
    stream.bank.insert("x", [(3, "2024-01-01 00:00:02"), (4, "2024-01-01 00:00:04")])
    found = await stream.verify()
    assert found.missing == ["id=3"]
    assert found.comparison.pending == 1


async def test_the_rows_of_a_replaced_table_are_missing(dialect: str, make: Make) -> None:
    """Refilled with lower keys, which a tail never reads."""
    stream = make(dialect, "id int primary key, v int", [(i, 1) for i in range(11, 16)], mode="snapshot_then_tail",
                  on_replaced="continue")  # fmt: skip
    await stream.run()
    stream.bank.run("delete from x" if dialect == "sqlite" else "truncate table x")
    stream.bank.insert("x", [(i, 1) for i in range(1, 4)])
    await stream.run()
    found = await stream.verify()
    assert found.missing == ["id=1", "id=2", "id=3"]
    assert found.unexpected == [f"id={i}" for i in range(11, 16)]


async def test_a_field_that_has_taken_another_columns_values_differs(dialect: str, make: Make) -> None:
    stream = make(dialect, "id int primary key, a int, b int", [(1, 10, 20), (2, 30, 40), (3, 5, 5)])
    stream.bank.run("update x set a = 20, b = 10 where id = 1")
    stream.bank.run("update x set a = 40, b = 30 where id = 2")
    await stream.run()
    stream.bank.run("update x set a = 10, b = 20 where id = 1")
    stream.bank.run("update x set a = 30, b = 40 where id = 2")
    assert (await stream.verify()).differing == ["id=1 (a, b)", "id=2 (a, b)"]


async def test_a_field_whose_column_was_dropped_differs_where_another_column_has_its_name(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make("postgres", 'id int primary key, "net$" int, "net#" int', [(1, 10, 20)])
    await stream.run()
    stream.bank.run('alter table x drop column "net$"')
    stream.bank.run('alter table x rename column "net#" to "net_"')
    monkeypatch.setattr(verify_run, "refuse_other_query", lambda *_: None)
    (name,) = (await stream.verify()).differing
    assert name.startswith("id=1 (net_")


async def test_values_that_were_read_rounded_or_in_another_form_differ(make: Make) -> None:
    """The settings of the database would round what verify reads, too."""
    stream = make("postgres", "id int primary key, p point, f float8[][], r tstzrange, i interval")
    stream.bank.run("insert into x values (1, '(0.3,1)', '{{0.3}}', '[2024-02-01 00:00Z,)', '1 day')")
    await stream.run()
    stream.bank.run("update x set p = '(0.30000000000000004,1)', f = '{{0.30000000000000004}}'")
    database = stream.bank.quote(stream.bank.url.rpartition("/")[2])
    settings = {"extra_float_digits": "-15", "datestyle": "SQL, DMY", "intervalstyle": "sql_standard"}
    try:
        for name, value in settings.items():
            stream.bank.run(f"alter database {database} set {name} = '{value}'")
        assert (await stream.verify()).differing == ["id=1 (p, f)"]
    finally:
        for name in settings:
            stream.bank.run(f"alter database {database} reset {name}")


@pytest.mark.parametrize(
    ("setting", "value", "field"),
    [
        ("extra_float_digits", "-15", "p"),
        ("extra_float_digits", "0", "f"),
        ("DateStyle", "SQL, DMY", "r"),
        ("IntervalStyle", "sql_standard", "i"),
        ("bytea_output", "escape", "b"),
    ],
)
async def test_a_run_that_does_not_pin_a_setting_differs(
    setting: str, value: str, field: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make("postgres", "id int primary key, p point, f float8[][], r daterange, i interval, b bytea[][]")
    stream.bank.run(
        "insert into x values (1, '(0.30000000000000004,1)', '{{0.30000000000000004}}', '[2024-02-01,2024-03-01)',"
        """ '1 day -2 hours', '{{"\\\\x5c00"}}')"""
    )
    database = stream.bank.quote(stream.bank.url.rpartition("/")[2])
    stream.bank.run(f"alter database {database} set {setting} = '{value}'")
    try:
        with monkeypatch.context() as patch:
            pinned = {name: text for name, text in postgres_settings.SETTINGS.items() if name != setting}
            patch.setattr(postgres_settings, "SETTINGS", pinned)
            await stream.run()
        (name,) = (await stream.verify()).differing
    finally:
        stream.bank.run(f"alter database {database} reset {setting}")
    assert field in name.partition(" ")[2]


@pytest.mark.parametrize("changed", ["topic", "database"])
async def test_a_checkpoint_of_another_topic_or_database_does_not_agree(
    changed: str, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unique: str
) -> None:
    stream = make("sqlite", "id integer primary key, v int", [(i, i) for i in range(1, 6)])
    await stream.run()
    if changed == "topic":
        other = replace(stream, folder=tmp_path, settings={"topic": f"{unique}.2", "name": "other"})
        stream.bank.run("delete from x")
        await other.run()  # an empty topic
        stream.bank.insert("x", [(i, i) for i in range(1, 6)])
        other.settings = {"topic": f"{unique}.2"}
        assert await topic_partitions(other.config.kafka, f"{unique}.2") is not None
    else:
        (tmp_path / "two").mkdir()
        bank = databank("sqlite", None, tmp_path / "two")  # type: ignore[arg-type]  # it has no server
        bank.run("create table x (id integer primary key, v int)")
        bank.insert("x", [(i, -i) for i in range(1, 4)])
        other = replace(stream, bank=bank)
    with pytest.raises(OtherQueryError):
        await other.verify()
    monkeypatch.setattr(verify_run, "refuse_other_query", lambda *_: None)
    found = await other.verify()
    if changed == "topic":
        assert found.missing == [f"id={i}" for i in range(1, 6)]
    else:
        assert found.differing == [f"id={i} (v)" for i in range(1, 4)]
        assert found.unexpected == ["id=4", "id=5"]


async def test_rows_that_belong_to_no_split_are_missing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(
        "sqlite", "id integer primary key, v int", [(i, i) for i in range(1, 41)], max_parallel=2, page_size=5
    )
    await stream.run()
    (summary,) = stream.config.streams
    whole = await whole_state(await _store(stream.config), summary.name)
    assert whole is not None
    first, second = whole.checkpoints
    assert isinstance(first.split.upper, KeyPosition)
    gap = int(str(first.split.upper.values[0]))
    # A division of the second split that lost its beginning, and rows that were never sent.
    torn = replace(second, split=replace(second.split, lower=KeyPosition((gap + 3,))))

    async def state(*_: Any) -> StreamState:
        return replace(whole, checkpoints=(first, torn))

    stream.bank.run(f"update x set v = -v where id in ({gap + 1}, {gap + 2})")
    monkeypatch.setattr(verify_run, "whole_state", state)
    found = await stream.verify()
    assert found.differing == sorted([f"id={gap + 1} (v)", f"id={gap + 2} (v)"])
    assert [(part.split, part.rows, part.differing) for part in found.ranges if not part.agrees] == [("", 3, 2)]


async def _store(config: Config) -> Any:
    store = make_store(config)
    await store.start()
    return store


async def test_a_scan_that_breaks_is_started_again(dialect: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(dialect, "id int primary key, v int", [(i, i) for i in range(1, 6)])
    await stream.run()
    scan, breaks = SqlSource.scan, [0]

    def breaking(source: SqlSource, *arguments: Any) -> Any:
        pages = scan(source, *arguments)
        assert pages is not None

        async def some() -> Any:
            async with contextlib.aclosing(pages):
                async for page in pages:
                    assert isinstance(page, ScannedPage)
                    yield page
                    if breaks[0] < 2:
                        breaks[0] += 1
                        raise SourceUnavailableError("the connection is gone")

        return some()

    monkeypatch.setattr(SqlSource, "scan", breaking)
    found = await stream.verify()
    assert breaks == [2]
    assert found.agrees
    assert found.comparison.source_rows == 5
