"""Owns the claims about the cost of a run of the SQL source: no pandas at its start, bounded memory for wide rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from producer.sources.sql.table import MAX_RESULT_BYTES
from tests.integration.sql_reading import open_source, stream
from tests.sql import Databank, mariadb, sqlite
from tests.sql import postgres as postgres_bank

NARROW, WIDE, WIDE_BYTES = 20_000, 400, 900_000


def config(folder: Path, url: str, kafka: str, topic: str) -> Path:
    path = folder / "producer.yaml"
    one = {"source": "db", "table": "wide", "topic": topic, "page_size": 20_000, "max_parallel": 1}
    content = {
        "app": topic,
        "kafka": {"bootstrap_servers": kafka},
        "checkpoints": {"type": "file", "path": str(folder / "state")},
        "http": {"port": 0},
        "sources": {"db": {"type": "sql", "url": url}},
        "streams": [one],
    }
    path.write_text(yaml.safe_dump(content))
    return path


RUN = """
import json, re, sys
from producer.cli import main
code = main(sys.argv[1:])
names = ("pandas", "pyarrow.compute", "pyarrow.dataset", "adbc_driver_manager.dbapi")
heavy = [name for name in names if name in sys.modules]
# Not ru_maxrss: that begins with what the process that started this one had.
peak_kib = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(json.dumps({"code": code, "heavy": heavy, "rss": int(peak_kib) * 1024}))
"""


def run(path: Path) -> list[dict[str, object]]:
    command = [sys.executable, "-c", RUN, "run", str(path), "--once", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def bank(postgres_dsn: str) -> Databank:
    made = postgres_bank(postgres_dsn)
    made.run("CREATE TABLE wide (id bigint PRIMARY KEY, body text NOT NULL, at timestamptz DEFAULT now())")
    made.run("ALTER TABLE wide ALTER body SET STORAGE EXTERNAL")
    made.run(f"INSERT INTO wide SELECT g, 'small' FROM generate_series(1, {NARROW}) g")
    made.run(
        f"INSERT INTO wide SELECT g, repeat(md5(g::text), {WIDE_BYTES // 32}) "
        f"FROM generate_series({NARROW + 1}, {NARROW + WIDE}) g"
    )
    return made


@pytest.mark.timeout(300)
def test_a_run_over_suddenly_wide_rows_stays_small_and_imports_no_pandas(
    bank: Databank, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    try:
        summary, about = run(config(tmp_path, bank.url, kafka_bootstrap, unique))
    finally:
        bank.run("DROP TABLE wide")
        bank.close()
    assert (summary["acked"], about["code"], about["heavy"]) == (NARROW + WIDE, 0, [])
    assert int(str(about["rss"])) < 300 * 2**20


async def test_a_page_ends_where_its_rows_are_enough_for_the_memory(bank: Databank) -> None:
    settings = stream("wide", page_size=20_000, max_parallel=1)
    try:
        async with open_source(bank.url) as source:
            dataset = await source.describe(settings)
            (split,) = await source.plan(settings, dataset)
            reader = await source.reader(settings, dataset, split)
            page = await reader.fetch(None, NARROW)
            ids: list[int] = []
            while True:
                page = await reader.fetch(page.position, 20_000)
                ids += page.batch.column(0).to_pylist()
                assert page.batch.nbytes < 2 * MAX_RESULT_BYTES
                if page.last:
                    break
            await reader.close()
    finally:
        bank.run("DROP TABLE wide")
        bank.close()
    assert ids == list(range(NARROW + 1, NARROW + WIDE + 1))


def test_a_run_from_sqlite_imports_no_pandas(kafka_bootstrap: str, unique: str, tmp_path: Path) -> None:
    made = sqlite(tmp_path / "shop.db")
    made.run("CREATE TABLE wide (id INTEGER PRIMARY KEY, body TEXT)")
    made.insert("wide", [(1, "a"), (2, "b")])
    made.close()
    summary, about = run(config(tmp_path, made.url, kafka_bootstrap, unique))
    assert (summary["acked"], about["heavy"]) == (2, ["pyarrow.compute"])


async def test_a_page_from_sqlite_ends_where_its_rows_are_enough_for_the_memory(tmp_path: Path) -> None:
    made = sqlite(tmp_path / "shop.db")
    made.run("CREATE TABLE wide (id INTEGER PRIMARY KEY, body TEXT, at TIMESTAMP)")
    made.insert("wide", [(n, "a" * 10_000, n if n % 2 else "2024-01-01") for n in range(1, 5001)])
    made.close()
    settings = stream("wide", page_size=5000, max_parallel=1)
    async with open_source(made.url) as source:
        dataset = await source.describe(settings)
        (split,) = await source.plan(settings, dataset)
        reader = await source.reader(settings, dataset, split)
        ids: list[int] = []
        position = None
        while True:
            page = await reader.fetch(position, 5000)
            position = page.position
            ids += page.batch.column(0).to_pylist()
            assert page.batch.nbytes < 2 * MAX_RESULT_BYTES
            if page.last:
                break
        await reader.close()
    assert ids == list(range(1, 5001))


async def test_a_page_from_mariadb_ends_where_its_rows_are_enough_for_the_memory(mariadb_url: str) -> None:
    made = mariadb(mariadb_url)
    made.run("CREATE OR REPLACE TABLE wide (id INTEGER PRIMARY KEY, body MEDIUMTEXT)")
    try:
        made.run("INSERT INTO wide SELECT seq, repeat('a', 300000) FROM seq_1_to_300")
        settings = stream("wide", page_size=5000, max_parallel=1)
        async with open_source(made.url) as source:
            dataset = await source.describe(settings)
            (split,) = await source.plan(settings, dataset)
            reader = await source.reader(settings, dataset, split)
            ids: list[int] = []
            position = None
            while True:
                page = await reader.fetch(position, 5000)
                position = page.position
                ids += page.batch.column(0).to_pylist()
                assert page.batch.nbytes < 64 * 300_010 + MAX_RESULT_BYTES
                if page.last:
                    break
            await reader.close()
    finally:
        made.run("DROP TABLE wide")
        made.close()
    assert ids == list(range(1, 301))
