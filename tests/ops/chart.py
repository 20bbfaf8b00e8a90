"""Owns how tests run helm on the chart: the values that are tried, and what comes out, as documents."""

from __future__ import annotations

import itertools
import json
import shutil
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


SHAPES: dict[str, Values] = {
    "deployment": {},
    "on-disk": ON_DISK,
    "existing-claim": merged(ON_DISK, {"persistence": {"existingClaim": "mine"}}),
    "shared": SHARED,
    "keda": merged(SHARED, {"autoscaling": {"type": "keda"}}),
    "hpa": merged(SHARED, {"autoscaling": {"type": "hpa"}}),
    "standby": STANDBY,
    "job": {"workload": "job", "job": {"activeDeadlineSeconds": 3600, "ttlSecondsAfterFinished": 0}},
    "cronjob": merged(ON_DISK, {"workload": "cronjob"}),
}
SWITCHES: tuple[tuple[str, ...], ...] = (
    ("serviceAccount", "create"),
    ("podDisruptionBudget", "enabled"),
    ("networkPolicy", "enabled"),
    ("serviceMonitor", "enabled"),
    ("prometheusRule", "enabled"),
    ("dashboards", "enabled"),
)
EVERYTHING: Values = {
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": ["registry"],
    "env": {"ZONE": "a"},
    "secretEnv": [{"name": "PGPASSWORD", "secret": "shop", "key": "password"}],
    "secretFiles": ["shop", "kafka.tls"],
    "secretsRevision": "2",
    "preStopSeconds": 5,
    "extraArgs": ["--debug"],
    "serviceAccount": {"annotations": {"cloud/role": "reader"}},
    "networkPolicy": {"egress": [{"to": [{"podSelector": {}}]}]},
    "service": {"annotations": {"a": "b"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Kafka"}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "data"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "batch", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "priorityClassName": "high",
    "extraVolumes": [{"name": "media", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "media", "mountPath": "/media"}],
}


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


def cases() -> dict[str, Values]:
    """The values of every shape with every combination of switches, by name."""
    found = {"everything": merged(BASE, EVERYTHING), "everything-job": merged(BASE, EVERYTHING, {"workload": "job"})}
    for shape, values in SHAPES.items():
        for chosen in itertools.product((False, True), repeat=len(SWITCHES)):
            switches: Values = {group: {name: on} for (group, name), on in zip(SWITCHES, chosen, strict=True)}
            found[f"{shape}-{''.join(str(int(on)) for on in chosen)}"] = merged(BASE, values, switches)
    return found


def render_all(helm: str, parent: Path) -> dict[str, list[Document]]:
    """All of `cases`, rendered; as charts in one, in the empty folder `parent`, so that helm runs once."""
    shutil.copytree(CHART, parent / "charts" / "streaming-producer")
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    wanted = cases()
    names = dict(zip((f"c{number}" for number in range(len(wanted))), wanted, strict=True))
    dependencies = [{"name": chart["name"], "version": chart["version"], "alias": alias} for alias in names]
    about = {"apiVersion": "v2", "name": "all", "version": "0.1.0", "dependencies": dependencies}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(about))
    values = {alias: merged(wanted[case], {"fullnameOverride": case}) for alias, case in names.items()}
    done = run(helm, "template", "all", str(parent), "--namespace", "data", values=values)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Document]] = {case: [] for case in wanted}
    for text in done.stdout.split("\n---\n"):
        alias = text.split("# Source: all/charts/", 1)[1].split("/", 1)[0]
        found[names[alias]] += documents(text)
    return found


def distinct(rendered: Mapping[str, Sequence[Document]]) -> list[Document]:
    """One of those that differ in nothing but their names and labels."""
    found: dict[str, Document] = {}
    for document in itertools.chain.from_iterable(rendered.values()):
        without_name = {**document, "metadata": {**document["metadata"], "name": "x"}}
        without_name["metadata"].pop("labels")
        name = document["metadata"]["labels"]["app.kubernetes.io/name"]
        text = json.dumps(without_name, sort_keys=True)
        for told in (f"{document['metadata']['name']}-", document["metadata"]["name"], name):
            text = text.replace(told, "x")
        found[text] = document
    return list(found.values())


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
