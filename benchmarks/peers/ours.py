"""Owns the product as a competitor: ``producer run --once`` on a configuration made for the case."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Sample, WrongResult, landed, python, run, sample
from benchmarks.servers import Servers
from benchmarks.tables import Table


def measure(
    servers: Servers,
    table: Table,
    *,
    database: str = "postgres",
    exactly_once: bool = False,
    headers: bool = True,
    topic: str | None = None,
    **stream: Any,
) -> Sample:
    """One table to one topic (a new one, or `topic`). `stream` are more keys of the stream's configuration."""
    if topic is None:
        with servers.topics() as (made,):
            return measure(
                servers, table, database=database, exactly_once=exactly_once, headers=headers, topic=made, **stream
            )
    url = servers.url(database, table)
    streams = [{"name": table.name, "source": "bench", "table": table.name, "topic": topic, **stream}]
    return _measure(servers, url, streams, table.rows, exactly_once=exactly_once, headers=headers)


def measure_many(servers: Servers, tables: list[Table]) -> Sample:
    """As many streams in one process, each from its own table to its own topic of one partition."""
    urls = {servers.url("postgres", table) for table in tables}
    with servers.topics(len(tables), partitions=1) as topics:
        streams = [
            {"name": table.name, "source": "bench", "table": table.name, "topic": topic}
            for table, topic in zip(tables, topics, strict=True)
        ]
        return _measure(servers, urls.pop(), streams, sum(table.rows for table in tables))


def _measure(
    servers: Servers,
    url: str,
    streams: list[dict[str, Any]],
    rows: int,
    *,
    exactly_once: bool = False,
    headers: bool = True,
) -> Sample:
    with tempfile.TemporaryDirectory(dir=servers.folder) as folder:
        config = Path(folder, "config.yaml")  # JSON is YAML
        settings = {
            "app": Path(folder).name,
            "kafka": {"bootstrap_servers": servers.bootstrap, "compression": "zstd", "headers": headers},
            "schema_registry": {"url": servers.registry.url},
            "checkpoints": {"type": "kafka"} if exactly_once else {"type": "file", "path": "./state"},
            "delivery": "exactly_once" if exactly_once else "at_least_once",
            "http": {"port": 0},
            "sources": {"bench": {"type": "sql", "url": url}},
            "streams": streams,
        }
        config.write_text(json.dumps(settings))
        used = run(python("producer", "run", str(config), "--once", "--json"))
    summaries = [json.loads(line) for line in used.stdout.splitlines()]
    if any(s["state"] != "complete" for s in summaries) or sum(s["acked"] for s in summaries) != rows:
        raise WrongResult(f"the summary says otherwise: {used.stdout[:500]}")
    found = landed(servers.bootstrap, [s["topic"] for s in streams])
    begin = float(found.appended_s[0])
    last = len(found.appended_s) - 1
    edges = [float(found.appended_s[last * tenth // 10]) - begin for tenth in range(11)]
    return sample(
        used,
        found,
        rows,
        tenths_s=[round(edge, 3) for edge in edges],
        last_stream_begins_s=round(max(found.first_s.values()) - begin, 3),
        first_stream_ends_s=round(min(found.last_s.values()) - begin, 3),
    )
