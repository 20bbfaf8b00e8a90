"""Owns a Kubernetes control plane on loopback: etcd, the API server with all its admission, the controllers."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx

from producer.embedded import free_port
from tests.cluster import programs
from tests.services import tools
from tests.services.certificates import Authority
from tests.services.process import Process

_TOKEN = "of-the-tests"
# A node of ours has no kubelet that would tell that it lives.
_CONTROLLERS = "*,-node-lifecycle-controller"


class ControlPlane:
    """Reached by `kubectl`, by programs that are given `kubeconfig`, and by `api`; the user may do everything."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="cluster-"))
        self.kubeconfig = self._folder / "kubeconfig"
        self._started: list[Process] = []

    def start(self) -> None:
        authority = Authority(self._folder)
        server, signer = authority.issue("server"), authority.issue("accounts")
        (self._folder / "tokens").write_text(f'{_TOKEN},tests,tests,"system:masters"\n')
        etcd, port = free_port(), free_port()
        self._write_kubeconfig(port, authority.cafile)
        self.api = httpx.Client(
            base_url=f"https://127.0.0.1:{port}",
            verify=ssl.create_default_context(cafile=str(authority.cafile)),
            headers={"Authorization": f"Bearer {_TOKEN}"},
        )
        self._run(
            "etcd",
            f"--data-dir={self._folder}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{free_port()}",
            "--unsafe-no-fsync",
        )
        apiserver = self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={server.certfile}",
            f"--tls-private-key-file={server.keyfile}",
            f"--token-auth-file={self._folder}/tokens",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={signer.certfile}",
            f"--service-account-signing-key-file={signer.keyfile}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--endpoint-reconciler-type=none",
        )
        apiserver.wait_ready(self._is_ready)
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={_CONTROLLERS}",
            f"--service-account-private-key-file={signer.keyfile}",
            f"--root-ca-file={authority.cafile}",
            "--leader-elect=false",
            "--secure-port=0",
        )
        for path in programs.definitions():
            self.kubectl("create", "--filename", str(path))
        self.kubectl("wait", "--for=condition=Established", "--all", "customresourcedefinitions", "--timeout=60s")

    def close(self) -> None:
        self.api.close()
        for process in reversed(self._started):
            process.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        done = self.tried(*arguments, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tried(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """kubectl, however it ends; `given` is its standard input."""
        command = [tools.path("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=300)

    def get(self, path: str, **parameters: str) -> Any:
        answer = self.api.get(path, params=parameters)
        answer.raise_for_status()
        return answer.json()

    def _write_kubeconfig(self, port: int, cafile: Path) -> None:
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(cafile)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "tests", "user": {"token": _TOKEN}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        }
        self.kubeconfig.write_text(json.dumps(config))
        self.kubeconfig.chmod(0o600)

    def _run(self, name: str, *arguments: str) -> Process:
        process = Process([str(programs.folder() / name), *arguments], log=self._folder / f"{name}.log")
        self._started.append(process)
        return process

    def _is_ready(self) -> bool:
        try:
            return self.api.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False
