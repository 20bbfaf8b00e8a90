"""Owns the contract cases of the IPTVPortal source: both traversals, with a schema, without one, and a capped API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from producer.config import StreamConfig
from producer.model import Traversal
from producer.sources.iptvportal import IptvPortalConfig, IptvPortalSource
from tests.contract.cases import Build, SourceCase
from tests.jsonsql.running import serving
from tests.jsonsql.server import Settings, fill_sqlite

IDS = [*range(1, 12), *range(100, 400, 11), 10**6, 2**53 + 1, 2**63 - 1]
TRAVERSALS: tuple[Traversal, ...] = ("ID_RANGE", "OFFSET")
COLUMNS = {"id": "integer", "name": "text", "seen": "timestamp"}


@contextmanager
def case(traversal: Traversal, more: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[SourceCase]:
    folder: Path = request.getfixturevalue("tmp_path")
    database = str(folder / "portal.db")
    rows = [(i, f"n{i}" if i % 3 else None, "2025-12-15 20:30:00.5") for i in IDS]
    for table, content in (("terminal", rows), ("empty", [])):
        fill_sqlite(database, table, content, "id INTEGER PRIMARY KEY, name TEXT, seen TEXT")
    settings = Settings(database, **{k: v for k, v in more.items() if k != "schema"})
    columns = {"terminal": COLUMNS, "empty": COLUMNS} if more.get("schema", True) else {"empty": COLUMNS}
    with serving(settings) as server:
        config = IptvPortalConfig(url=server.url, username="user", password=SecretStr("secret"), columns=columns)
        yield SourceCase(
            open_source=partial(IptvPortalSource, config),
            stream=_stream("terminal", traversal),
            keys=[(i,) for i in IDS],
            empty=_stream("empty", traversal),
        )


def _stream(table: str, traversal: Traversal) -> StreamConfig:
    return StreamConfig(name="s", source="portal", table=table, traversal=traversal, page_size=5, max_parallel=3)


CASES: dict[str, Build] = {
    f"{traversal}-{name}": partial(case, traversal, more)
    for traversal in TRAVERSALS
    for name, more in (
        ("schema", {}),
        ("no_schema", {"schema": False}),
        ("capped_pages", {"max_rows": 4}),
        ("gzip", {"gzip": True}),
    )
}
