"""Owns the claims about tables at the edge of what databases hold: a thousand columns, and values of 10 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.kafka_rows import read_topic
from tests.sql import TABLES, Databank, databank

COLUMNS = 1000
TEN_MB = 10 * 2**20
ROOM = 32 * 2**20  # bytes that broker and producer let through

#: Types in turn, with a value made of the number i. Of text there is little: InnoDB keeps a row in half a page.
KINDS = {
    "postgres": [
        ("int", "i"),
        ("float8", "i / 7.0"),
        ("timestamptz", "'2024-02-29 12:00:00+00'"),
        ("text", "'v' || i"),
    ],
    "mariadb": [("int", "i"), ("double", "i / 7"), ("datetime", "'2024-02-29 12:00:00'"), ("smallint", "null")],
    "sqlite": [("integer", "i"), ("real", "i / 7.0"), ("timestamp", "'2024-02-29 12:00:00'"), ("text", "'v' || i")],
}
NUMBERS = {
    "postgres": "generate_series(1, 50) i",
    "mariadb": "(select seq as i from seq_1_to_50) n",
    "sqlite": "(with recursive n(i) as (select 1 union all select i + 1 from n where i < 50) select i from n) n",
}
#: Columns of long values, which do not compress, and how each is made from the number i.
_HEX = "(select string_agg(md5((i * 1000000 + g)::text), '') from generate_series(1, 327680) g)"
_SHA = "(select group_concat(sha2({} * 1000000 + seq, 256) separator '') from seq_1_to_163840)"
LONG = {
    "postgres": {"body text": _HEX, "data bytea": f"convert_to(reverse({_HEX}), 'UTF8')"},
    "mariadb": {
        "body longtext": _SHA.format("i"),
        "data longblob": f"concat(unhex({_SHA.format('7 * i')}), unhex({_SHA.format('9 * i')}))",
    },
    "sqlite": {"body text": f"hex(randomblob({TEN_MB // 2}))", "data blob": f"randomblob({TEN_MB})"},
}


def producer(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "producer", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(params=TABLES)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bank(dialect: str, request: pytest.FixtureRequest) -> Iterator[Databank]:
    made = databank(dialect, request)
    made.run("drop table if exists extreme")
    yield made
    made.run("drop table extreme")
    made.close()


def configuration(folder: Path, bank: Databank, bootstrap: str, registry: str, name: str) -> Path:
    path = folder / "producer.yaml"
    document = {
        "app": name,
        "kafka": {"bootstrap_servers": bootstrap, "max_request_size": ROOM},
        "schema_registry": {"url": registry},
        "checkpoints": {"type": "file", "path": str(folder / "state")},
        "http": {"port": 0},
        "sources": {"db": {"type": "sql", "url": bank.url}},
        "streams": [
            {"source": "db", "table": "extreme", "topic": name, "topic_config": {"max.message.bytes": str(ROOM)}}
        ],
    }
    path.write_text(yaml.safe_dump(document))
    return path


async def test_a_thousand_columns_arrive(
    dialect: str, bank: Databank, tmp_path: Path, kafka_bootstrap: str, registry_url: str, unique: str
) -> None:
    kinds = [KINDS[dialect][n % 4] for n in range(COLUMNS - 1)]
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _) in enumerate(kinds))
    bank.run(f"create table extreme (id int not null primary key, {columns})")
    bank.run(f"insert into extreme select i, {', '.join(value for _, value in kinds)} from {NUMBERS[dialect]}")
    path = configuration(tmp_path, bank, kafka_bootstrap, registry_url, unique)

    (summary,) = producer("run", str(path), "--once")
    (verified,) = producer("verify", str(path))

    assert (summary["acked"], verified["source_rows"], verified["topic_keys"]) == (50, 50, 50)


async def test_values_of_ten_megabytes_arrive_whole(
    dialect: str, bank: Databank, tmp_path: Path, kafka_bootstrap: str, registry_url: str, unique: str
) -> None:
    columns = LONG[dialect]
    if dialect == "mariadb":
        bank.run(f"set session group_concat_max_len = {4 * TEN_MB}")
    bank.run(f"create table extreme (id int not null primary key, {', '.join(columns)})")
    for i in range(1, 4):
        bank.run(f"insert into extreme select i, {', '.join(columns.values())} from (select {i} as i) n")
    bank.run("insert into extreme values (4, 'short', null)")
    path = configuration(tmp_path, bank, kafka_bootstrap, registry_url, unique)

    (summary,) = producer("run", str(path), "--once")
    (verified,) = producer("verify", str(path))

    assert (summary["acked"], verified["source_rows"]) == (4, 4)
    sizes = [len(record.value) for record in await read_topic(kafka_bootstrap, unique)]
    assert sorted(sizes)[1:] == pytest.approx([2 * TEN_MB] * 3, abs=30)
