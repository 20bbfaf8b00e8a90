"""docker-compose.yml is valid, what it mounts is there, and its producer streams its sample table on real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """The file as the compose program itself understands it."""
    program = Path(sys.executable).with_name("docker-compose")
    done = subprocess.run(
        [program, "-f", "docker-compose.yml", "config", "--format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_whole_system_is_described(composed: dict[str, Any]) -> None:
    expected = {"kafka", "registry", "postgres", "redis", "prometheus", "grafana", "producer"}
    assert set(composed["services"]) == expected


def test_everything_mounted_is_there(composed: dict[str, Any]) -> None:
    mounts = [
        Path(volume["source"])
        for service in composed["services"].values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert mounts
    assert not [path for path in mounts if not path.exists()]


def test_the_producer_waits_until_its_servers_are_healthy(composed: dict[str, Any]) -> None:
    services = composed["services"]
    for name, condition in services["producer"]["depends_on"].items():
        assert condition["condition"] == "service_healthy"
        assert services[name]["healthcheck"]["test"]


def test_no_port_is_open_to_other_machines(composed: dict[str, Any]) -> None:
    ports = [port for service in composed["services"].values() for port in service.get("ports", ())]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


async def test_its_producer_streams_the_sample_table(
    postgres_dsn: str, kafka_bootstrap: str, registry_url: str
) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    try:
        await connection.execute((ROOT / "compose/sample.sql").read_text())
        rows = await connection.fetchval("SELECT count(*) FROM orders")
    finally:
        await connection.close()
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP": kafka_bootstrap,
        "REGISTRY_URL": registry_url,
        "SHOP_URL": postgres_dsn,
        "HTTP_PORT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "producer", "run", "compose/producer.yaml", "--once", "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["stream"], summary["rows"], summary["acked"]) == ("orders", rows, rows)
