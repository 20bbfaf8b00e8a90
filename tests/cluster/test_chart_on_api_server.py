"""The chart on a real API server: taken without a warning, installed, upgraded, rolled back, moved from a node."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from tests.cluster import node as pretended
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import Node
from tests.ops.chart import BASE, CHART, SHAPES, SWITCHES, Document, Values, distinct, merged, one, pod, render_all, run

RELEASES = sorted(Path(__file__).parents[1].joinpath("ops/releases").iterdir())
EVERYTHING_ON: Values = {group: {name: True} for group, name in SWITCHES}
STRICT = ("apply", "--dry-run=server", "--validate=strict", "--filename=-")


@pytest.fixture(scope="module")
def rendered(helm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    return render_all(helm, tmp_path_factory.mktemp("parent"))


def as_list(found: list[Document]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": found})


def test_the_server_takes_every_combination_of_switches_without_a_warning(
    rendered: dict[str, list[Document]], plane: ControlPlane, restricted: Callable[[str], str]
) -> None:
    restricted("data")
    wanted = distinct(rendered)
    assert {"Deployment", "Job", "CronJob", "ServiceMonitor", "PrometheusRule", "ScaledObject"} <= {
        document["kind"] for document in wanted
    }
    done = plane.tried(*STRICT, given=as_list(wanted))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("(server dry run)") == len(wanted)


def test_the_server_would_say_what_is_wrong(
    rendered: dict[str, list[Document]], plane: ControlPlane, restricted: Callable[[str], str]
) -> None:
    """The test above can fail: for a pod that is not as it is asked to be, and for a key that is not known."""
    restricted("wrong")
    deployment = deepcopy(one(rendered["deployment-111111"], "Deployment"))
    deployment["metadata"]["namespace"] = "wrong"
    pod([deployment])["spec"]["containers"][0]["securityContext"]["capabilities"] = {}
    done = plane.tried(*STRICT, given=as_list([deployment]))
    assert "unrestricted capabilities" in done.stderr
    pod([deployment])["spec"]["containers"][0]["readOnly"] = True
    done = plane.tried(*STRICT, given=as_list([deployment]))
    assert done.returncode != 0
    assert "readOnly" in done.stderr


def until(holds: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Release:
    """A release of the chart in a namespace of its own."""

    def __init__(self, helm: str, plane: ControlPlane, namespace: str) -> None:
        self._helm, self._plane, self.namespace = helm, plane, namespace

    def do(self, *arguments: str, values: Values | None = None) -> str:
        """A command of helm that waits for what it does to be in place."""
        where = ("--kubeconfig", str(self._plane.kubeconfig), "--namespace", self.namespace)
        done = run(self._helm, *arguments, "--wait", "--timeout=60s", *where, values=values)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        return done.stdout

    def install(self, values: Values) -> None:
        self.do("install", "shop", str(CHART), values=values)

    def pods(self) -> list[Document]:
        found = self._plane.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    def objects(self, path: str) -> list[Document]:
        found: list[Document] = self._plane.get(f"/{path.replace('*', f'namespaces/{self.namespace}')}")["items"]
        return found


@pytest.fixture
def release(
    helm: str, plane: ControlPlane, node: Node, restricted: Callable[[str], str], request: pytest.FixtureRequest
) -> Iterator[Release]:
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[-40:].strip("-")
    made = Release(helm, plane, restricted(name))
    yield made
    made.do("uninstall", "shop")
    assert node.failure is None


@pytest.mark.parametrize("shape", SHAPES)
def test_it_installs_and_what_is_installed_comes_up(shape: str, release: Release) -> None:
    """The pods get past admission, which a dry run of a Deployment does not show."""
    release.install(merged(BASE, SHAPES[shape], EVERYTHING_ON))
    if shape == "cronjob":
        assert len(release.objects("apis/batch/v1/*/cronjobs")) == 1
    elif shape == "job":
        until(lambda: not release.objects("apis/batch/v1/*/jobs"), "not done, or not removed when it was")
    else:
        scaled = "autoscaling" in SHAPES[shape]  # then their number is not the chart's
        assert len(release.pods()) == (1 if scaled else SHAPES[shape].get("replicas", 1))
    for each in release.pods():
        assert not any("projected" in volume for volume in each["spec"]["volumes"]), "a token was mounted"


def test_another_configuration_is_another_pod_and_a_rollback_brings_the_first_back(release: Release) -> None:
    def configuration() -> str:
        (found,) = (each for each in release.objects("api/v1/*/configmaps") if "producer.yaml" in each["data"])
        return str(yaml.safe_load(found["data"]["producer.yaml"])["app"])

    def checksum() -> str:
        (found,) = release.pods()
        return str(found["metadata"]["annotations"]["checksum/config"])

    release.install(BASE)
    first = checksum()
    release.do("upgrade", "shop", str(CHART), values=merged(BASE, {"config": {"app": "other"}}))
    assert (configuration(), checksum() == first) == ("other", False)
    release.do("rollback", "shop", "1")
    assert (configuration(), checksum()) == ("shop-export", first)


def test_a_deployment_becomes_a_shared_one_and_a_cronjob_and_back(release: Release) -> None:
    release.install(BASE)
    for shape in ("shared", "cronjob", "job", "hpa", "deployment"):
        release.do("upgrade", "shop", str(CHART), values=merged(BASE, SHAPES[shape]))
    assert len(release.pods()) == 1


@pytest.mark.parametrize("last", RELEASES, ids=lambda path: f"from-{path.name}")
def test_what_a_release_has_set_can_be_upgraded_in_place(last: Path, release: Release) -> None:
    """Values of then with what was not set then left out, then taken over, then those of today, then back."""
    operator: Values = yaml.safe_load((last / "operator.yaml").read_text())
    release.install(merged(yaml.safe_load((last / "values.yaml").read_text()), operator))
    release.do("upgrade", "shop", str(CHART), "--reuse-values")
    release.do("upgrade", "shop", str(CHART), "--reset-values", values=operator)
    (claim,) = release.objects("api/v1/*/persistentvolumeclaims")
    assert claim["spec"]["storageClassName"] == operator["persistence"]["storageClass"]
    release.do("rollback", "shop", "1")
    assert len(release.pods()) == 1


@pytest.mark.parametrize("shape", ["deployment", "shared"])
def test_a_node_can_be_drained(shape: str, release: Release, plane: ControlPlane) -> None:
    """The budget lets pods go one by one, and never holds up the only one."""
    release.install(merged(BASE, SHAPES[shape]))
    before = {each["metadata"]["name"] for each in release.pods()}
    try:
        plane.kubectl("drain", pretended.NAME, "--pod-selector=app.kubernetes.io/instance=shop", "--timeout=60s",
                      "--delete-emptydir-data")  # fmt: skip
    finally:
        plane.kubectl("uncordon", pretended.NAME)
    until(lambda: len(release.pods()) == len(before), "no pods came in their place")
    assert before.isdisjoint(each["metadata"]["name"] for each in release.pods())
