"""Owns the fixtures of the tests on a real API server: what is missing ends the run with how to get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster import programs
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import Node
from tests.services import tools


@pytest.fixture(scope="session")
def helm() -> str:
    return tools.path("helm")


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    if not programs.folder().is_dir():
        raise pytest.UsageError("these tests need a Kubernetes control plane: python -m tests.cluster")
    control_plane = ControlPlane()
    try:
        control_plane.start()
        yield control_plane
    finally:
        control_plane.close()


@pytest.fixture(scope="session")
def node(plane: ControlPlane) -> Iterator[Node]:
    pretended = Node(plane)
    pretended.start()
    yield pretended
    pretended.close()


@pytest.fixture
def restricted(plane: ControlPlane) -> Callable[[str], str]:
    """Makes a namespace in which Pod Security's strictest profile is enforced, and told of by warnings."""

    def make(name: str) -> str:
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        plane.api.post("/api/v1/namespaces", json=namespace).raise_for_status()
        return name

    return make
