"""Owns the claims about what a run tells others: lineage events, spans over OTLP, and CloudEvents headers."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from producer.config import Config, load_config
from producer.metrics import Metrics
from producer.service import Service
from tests.integration.kafka_rows import read_topic

PASSWORD = "hunter2-secret"


def configured(tmp_path: Path, bootstrap: str, topic: str, **more: Any) -> Config:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        database.executemany("INSERT INTO events VALUES (?, ?)", [(i, f"n{i}") for i in range(1, 501)])
    database.close()
    kafka = {"bootstrap_servers": bootstrap, **more.pop("kafka", {})}
    document = {
        "app": "shop-export",
        "kafka": kafka,
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"}},
        "streams": [{"source": "shop", "table": "events", "topic": topic, "page_size": 200, **more.pop("stream", {})}],
        **more,
    }
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_config(path)


async def run(config: Config) -> None:
    service = Service(config, metrics=Metrics(), run_id="r")
    async with asyncio.timeout(60):
        await service.run(once=True, stop=asyncio.Event())


class Taker:
    """A server that keeps what is posted to it; `status` is its answer."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.taken: list[tuple[str, dict[str, str], bytes]] = []
        application = web.Application()
        application.router.add_post("/{path:.*}", self.take)
        self.server = TestServer(application)

    async def take(self, request: web.Request) -> web.Response:
        self.taken.append((request.path, dict(request.headers), await request.read()))
        return web.Response(status=self.status)

    async def __aenter__(self) -> Taker:
        await self.server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()

    @property
    def url(self) -> str:
        return str(self.server.make_url("/api/v1/lineage"))


async def test_a_run_is_told_as_start_running_and_complete_with_what_it_moved(
    tmp_path: Path, kafka_bootstrap: str, unique: str
) -> None:
    async with Taker() as taker:
        settings = {"url": taker.url, "api_key": PASSWORD, "interval_s": 0.001}
        slow = {"page_size": 100, "max_rows_per_s": 250}  # it takes two seconds
        await run(configured(tmp_path, kafka_bootstrap, unique, lineage=settings, stream=slow))
    events = [json.loads(body) for _, _, body in taker.taken]
    assert all(headers["Authorization"] == f"Bearer {PASSWORD}" for _, headers, _ in taker.taken)
    kinds = [event["eventType"] for event in events]
    assert kinds == ["START", *["RUNNING"] * (len(kinds) - 2), "COMPLETE"]
    moved = [event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] for event in events]
    assert any(0 < rows < 500 for rows in moved[1:-1])
    assert moved == sorted(moved)
    assert len({event["run"]["runId"] for event in events}) == 1
    last = events[-1]
    assert last["job"] == {"namespace": "shop-export", "name": "events"}
    assert last["inputs"] == [{"namespace": "sqlite", "name": f"{tmp_path}/shop.db.events"}]
    (output,) = last["outputs"]
    assert (output["namespace"], output["name"]) == (f"kafka://{kafka_bootstrap}", unique)
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 500
    assert last["schemaURL"].endswith("2-0-2/OpenLineage.json#/$defs/RunEvent")
    assert last["eventTime"].endswith("Z")


async def test_a_table_is_told_by_its_schema_as_the_server_has_it(
    tmp_path: Path, kafka_bootstrap: str, postgres_dsn: str, unique: str
) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("CREATE SCHEMA sales; CREATE TABLE sales.events (id bigint PRIMARY KEY)")
    await connection.close()
    path, parts = tmp_path / "lineage.jsonl", urlsplit(postgres_dsn)
    joined = "&" if parts.query else "?"
    source = {"type": "sql", "url": f"{postgres_dsn}{joined}options=-c%20search_path%3Dsales"}
    await run(configured(tmp_path, kafka_bootstrap, unique, lineage={"path": str(path)}, sources={"shop": source}))
    server, database = f"postgres://{parts.hostname}:{parts.port}", parts.path.removeprefix("/")
    for line in path.read_text().splitlines():
        assert json.loads(line)["inputs"] == [{"namespace": server, "name": f"{database}.sales.events"}]


async def test_a_failure_is_told_with_its_reason(tmp_path: Path, kafka_bootstrap: str, unique: str) -> None:
    path = tmp_path / "lineage.jsonl"
    config = configured(
        tmp_path, kafka_bootstrap, unique, lineage={"path": str(path)}, kafka={"max_request_size": 2000}
    )
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("INSERT INTO events VALUES (600, hex(randomblob(5000)))")
    database.close()
    await run(config)
    start, *_, end = [json.loads(line) for line in path.read_text().splitlines()]
    assert (start["eventType"], end["eventType"]) == ("START", "FAIL")
    assert "takes 10088 bytes" in end["run"]["facets"]["errorMessage"]["message"]


@pytest.mark.parametrize("away", [True, False])
async def test_a_lineage_server_that_is_away_or_refuses_holds_nothing_up(
    tmp_path: Path, kafka_bootstrap: str, unique: str, away: bool
) -> None:
    async with Taker(status=500) as taker:
        url = "http://127.0.0.1:9/" if away else taker.url
        await run(configured(tmp_path, kafka_bootstrap, unique, lineage={"url": url}))
    assert len(await read_topic(kafka_bootstrap, unique)) == 500


async def test_spans_go_where_the_environment_says(
    tmp_path: Path, kafka_bootstrap: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Taker() as taker:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", str(taker.server.make_url("/")).rstrip("/"))
        config = configured(tmp_path, kafka_bootstrap, unique, opentelemetry=True)
        await asyncio.to_thread(asyncio.run, run(config))  # in a loop of its own: the last spans leave while it ends
    requests = [ExportTraceServiceRequest.FromString(body) for path, _, body in taker.taken if path == "/v1/traces"]
    resources = [resource for request in requests for resource in request.resource_spans]
    assert {a.value.string_value for r in resources for a in r.resource.attributes} >= {"producer", "shop-export"}
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    pages = [span for span in spans if not span.parent_span_id]
    assert len(pages) >= 3
    for page in pages:
        assert page.name == "page"
        steps = [span.name for span in spans if span.parent_span_id == page.span_id and span.trace_id == page.trace_id]
        assert sorted(steps) == ["commit", "encode", "fetch", "send"]


async def test_with_the_switch_each_record_is_a_cloud_event_with_an_id_of_its_own(
    tmp_path: Path, kafka_bootstrap: str, unique: str
) -> None:
    await run(configured(tmp_path, kafka_bootstrap, unique, kafka={"headers": "cloudevents"}))
    records = await read_topic(kafka_bootstrap, unique)
    assert len(records) == 500
    ids = set()
    for record in records:
        headers = dict(record.headers)
        assert headers["ce_specversion"] == b"1.0"
        assert headers["ce_type"] == b"producer.row"
        assert headers["ce_source"] == b"/shop-export/shop/events"
        assert headers["content-type"] == b"application/avro"
        ids.add(headers["ce_id"])
    assert len(ids) == 500
