"""Owns how tests run helm on the chart: the least values that render, and what comes out, as documents."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"

Values = dict[str, Any]
Document = dict[str, Any]

BASE: Values = {
    "config": {
        "app": "shop-export",
        "kafka": {"bootstrap_servers": "kafka:9092"},
        "checkpoints": {"type": "kafka"},
        "sources": {"shop": {"type": "sql", "url": "postgresql://reader:${file:/run/secrets/shop/password}@pg/shop"}},
        "streams": [{"source": "shop", "table": "public.events", "page_size": 1000000}],
    },
    "secretFiles": ["shop"],
}
SHARED: Values = {"replicas": 3, "config": {"coordination": "kafka"}}
STANDBY: Values = {
    "replicas": 2,
    "config": {"coordination": "redis", "checkpoints": {"type": "redis", "url": "redis://redis"}},
}
ON_DISK: Values = {
    "config": {"checkpoints": {"type": "file", "path": "/var/lib/producer/state"}},
    "persistence": {"enabled": True},
}


def merged(*layers: Mapping[str, Any]) -> Values:
    """Mappings laid over one another, as helm lays values."""
    whole: Values = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(whole.get(key), dict)
            whole[key] = merged(whole[key], value) if both else deepcopy(value)
    return whole


def run(helm: str, *arguments: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    given = [] if values is None else ["--values", "-"]
    return subprocess.run(
        [helm, *arguments, *given],
        input=None if values is None else json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def template(helm: str, *layers: Mapping[str, Any], chart: Path = CHART, release: str = "shop") -> list[Document]:
    """What would be installed from `BASE` with `layers` over it."""
    done = run(helm, "template", release, str(chart), "--namespace", "data", values=merged(BASE, *layers))
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def one(found: Sequence[Document], kind: str) -> Document:
    (document,) = (document for document in found if document["kind"] == kind)
    return document


def pod(found: Sequence[Document]) -> Document:
    """The template of the pods, of whatever workload there is."""
    for document in found:
        match document["kind"]:
            case "Deployment" | "Job":
                return dict(document["spec"]["template"])
            case "CronJob":
                return dict(document["spec"]["jobTemplate"]["spec"]["template"])
    raise AssertionError("no workload")
