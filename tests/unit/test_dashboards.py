"""Every metric that a dashboard asks for is one that the producer has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from producer.metrics import Metrics

DASHBOARDS = sorted(Path(__file__).resolve().parents[2].joinpath("dashboards").glob("*.json"))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_asks_for_metrics_that_exist(path: Path) -> None:
    metrics = Metrics()
    stream = metrics.stream("s", "source", "topic")
    stream.retried("TransientError")
    families = text_string_to_metric_families(metrics.text().decode())
    names = {sample.name for family in families for sample in family.samples}
    panels = json.loads(path.read_text())["panels"]
    asked = {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"producer_\w+", target["expr"])
    }
    assert asked
    assert asked <= names
