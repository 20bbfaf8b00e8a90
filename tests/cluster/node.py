"""Owns a pretended node: stands in for scheduler, kubelet and storage, so that controllers see pods come, run and go.

No container runs. A pod is said to be running and ready as soon as it is there; one of a Job, to have succeeded. One
that is to end is gone a moment later; a claim gets a volume. What a pod's program does is the image's tests' business.
"""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import httpx

from tests.cluster.control_plane import ControlPlane

NAME = "pretended"
_PATCH = {"Content-Type": "application/strategic-merge-patch+json"}


class Node:
    """Looks after the pods of all namespaces from `start` to `close`, which raises what went wrong."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="node")
        self.failure: BaseException | None = None

    def start(self) -> None:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}}
        self._plane.api.post("/api/v1/nodes", json=node).raise_for_status()
        ready = {"status": {"conditions": [_condition("Ready", "Kubelet")]}}
        self._plane.api.patch(f"/api/v1/nodes/{NAME}/status", json=ready, headers=_PATCH).raise_for_status()
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _work(self) -> None:
        try:
            while not self._over.wait(0.05):
                for pod in self._plane.get("/api/v1/pods")["items"]:
                    self._look_after(pod)
                for claim in self._plane.get("/api/v1/persistentvolumeclaims")["items"]:
                    if claim["status"]["phase"] == "Pending":
                        self._provide(claim)
        except BaseException as error:
            self.failure = error

    def _look_after(self, pod: dict[str, Any]) -> None:
        about = pod["metadata"]
        path = f"/api/v1/namespaces/{about['namespace']}/pods/{about['name']}"
        if "deletionTimestamp" in about:
            self._tell("DELETE", path, {"gracePeriodSeconds": 0})
        elif "nodeName" not in pod["spec"]:
            target = {"apiVersion": "v1", "kind": "Node", "name": NAME}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": about["name"]}, "target": target}
            self._tell("POST", f"{path}/binding", binding)
        elif pod["status"]["phase"] == "Pending":
            bounded = pod["spec"]["restartPolicy"] == "Never"
            status = {"phase": "Succeeded"} if bounded else _running()
            self._tell("PATCH", f"{path}/status", {"status": status})

    def _provide(self, claim: dict[str, Any]) -> None:
        about, wanted = claim["metadata"], claim["spec"]
        spec = {
            "accessModes": wanted["accessModes"],
            "capacity": wanted["resources"]["requests"],
            "storageClassName": wanted.get("storageClassName", ""),
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": about["namespace"], "name": about["name"]},
        }
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": about["uid"]}, "spec": spec}
        self._tell("POST", "/api/v1/persistentvolumes", volume)

    def _tell(self, method: str, path: str, body: Any) -> None:
        """What has gone or changed meanwhile is looked at again the next time."""
        headers = _PATCH if method == "PATCH" else {}
        answer = self._plane.api.request(method, path, json=body, headers=headers)
        if answer.status_code not in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
            answer.raise_for_status()


def _running() -> dict[str, Any]:
    conditions = [_condition(kind, "Pretended") for kind in ("Initialized", "ContainersReady", "Ready")]
    return {"phase": "Running", "conditions": conditions}


def _condition(kind: str, reason: str) -> dict[str, str]:
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now}
