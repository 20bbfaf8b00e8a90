"""What the tests of the dump service share: the portal's tables, and reading every file format back."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastavro
import pyarrow.parquet as pq

from producer.dump import DumpConfig, DumpService, DumpStats
from producer.sources.iptvportal import AsyncIPTVPortalClient
from tests.jsonsql.running import serving
from tests.jsonsql.server import JsonSqlServer, Settings, fill_sqlite

Row = dict[str, Any]
SCHEMA_FILE = Path(__file__).parents[2] / "examples" / "iptvportal_schema.yaml"
_TABLES: dict[str, tuple[str, Callable[[int], tuple[Any, ...]], int]] = {
    "tv_channel": ("id INTEGER PRIMARY KEY, name TEXT", lambda i: (i, f"channel {i}"), 60),
    "tv_program": ("id INTEGER PRIMARY KEY, title TEXT", lambda i: (i * 2, f'programme "{i}"\n'), 400),
    "media": ("id INTEGER PRIMARY KEY, type TEXT, size REAL", lambda i: (i, ("film", "series")[i % 2], i / 3), 300),
    "package": ("id INTEGER PRIMARY KEY, name TEXT", lambda i: (i, f"пакет {i}"), 7),
    "subscriber": (
        "id INTEGER PRIMARY KEY, username TEXT, disabled BOOLEAN, balance REAL",
        lambda i: (i, f"user{i}", i % 2 == 1, float(i)),
        100,
    ),
    "terminal": (
        "id INTEGER PRIMARY KEY, mac TEXT, disabled BOOLEAN, balance REAL, last_seen TEXT, note TEXT",
        lambda i: (
            i * 3,
            f"00:{i:04x}",
            i % 2 == 1,
            i / 4,
            f"2025-12-{10 + i % 10} 20:30:00",
            f'"{i}\\' if i % 4 else None,
        ),
        1000,
    ),
}


@contextmanager
def portal(folder: Path, **settings: Any) -> Iterator[JsonSqlServer]:
    """A loopback server with the document's tables."""
    with serving(Settings(fill(folder / "portal.db"), **settings)) as server:
        yield server


def fill(path: Path) -> str:
    """The document's tables in a SQLite file."""
    for table, (columns, row, count) in _TABLES.items():
        fill_sqlite(str(path), table, (row(i) for i in range(1, count + 1)), columns)
    return str(path)


def expected(table: str) -> list[Row]:
    """The table's rows as the source has them."""
    columns, row, count = _TABLES[table]
    names = [part.split()[0] for part in columns.split(", ")]
    return [dict(zip(names, row(i), strict=True)) for i in range(1, count + 1)]


def open_client(server: JsonSqlServer, **more: Any) -> AsyncIPTVPortalClient:
    """A client of the loopback server, not started."""
    options: dict[str, Any] = {"username": "user", "password": "secret", "schema_file": str(SCHEMA_FILE)} | more
    return AsyncIPTVPortalClient(url=server.url, **options)


def read_state(config: DumpConfig) -> dict[str, Any]:
    """The state file as it stands."""
    state: dict[str, Any] = json.loads(config.state_path.read_text())
    return state


def stats_of(service: DumpService, table: str) -> DumpStats:
    """The statistics of a table that has been dumped."""
    stats = service.get_stats(table)
    assert stats is not None
    return stats


def ids_of(paths: tuple[Path, ...]) -> list[int]:
    """The ids in a dump's files, in their order."""
    return [int(row["id"]) for row in read_back(list(paths))]


def read_back(paths: list[Path]) -> list[Row]:
    """The rows of a dump's files, whatever their format; values of CSV are texts."""
    return [row for path in paths for row in _read(path)]


def _read(path: Path) -> list[Row]:
    data = path.read_bytes()
    name = path.name
    if name.endswith(".gz"):
        data, name = gzip.decompress(data), name.removesuffix(".gz")
    match name.rpartition(".")[2]:
        case "jsonl":
            assert not data or data.endswith(b"\n")
            return [json.loads(line) for line in data.splitlines()]
        case "json":
            rows: list[Row] = json.loads(data)
            return rows
        case "csv":
            return list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        case "parquet":
            table: list[Row] = pq.read_table(io.BytesIO(data)).to_pylist()
            return table
        case "avro":
            return [row for row in fastavro.reader(io.BytesIO(data)) if isinstance(row, dict)]
    raise AssertionError(path)
