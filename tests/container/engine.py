"""Owns an engine that builds and runs images: buildah and podman, with a store of their own that goes with them."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.container import base

ROOT = Path(__file__).resolve().parents[2]
# What of this machine's settings of pip says where packages come from.
_DOWNLOADS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")
# crun takes only version 1 or version 2 of control groups for what it finds; without systemd there may be both.
_ONE_HIERARCHY = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'


class Engine:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="container-"))
        processes = min(4096, resource.getrlimit(resource.RLIMIT_NPROC)[1] % 2**31)
        (self.folder / "containers.conf").write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc={processes}:{processes}"]\n'
        )
        (self.folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/graph"\nrunroot = "{self.folder}/run"\n'
        )
        self._environment = {
            **os.environ,
            "CONTAINERS_CONF": f"{self.folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{self.folder}/storage.conf",
        }
        self.podman("import", str(base.archive()), base.NAME)

    def close(self) -> None:
        for command in (("rm", "--all", "--force", "--time", "0"), ("rmi", "--all", "--force")):
            self.tried(*command)
        shutil.rmtree(self.folder, ignore_errors=True)

    def build(self, tag: str) -> None:
        """The Dockerfile, from nothing; all files as of one moment, so that what differs does not differ by that."""
        done = self._run(
            *("buildah", "bud", "--quiet", "--no-cache", "--timestamp", "315532800", "--format", "docker"),
            *("--isolation", "chroot", "--network", "host", "--pull-never", "--tag", tag),
            *(word for volume in self._downloads() for word in ("--volume", volume)),
            str(ROOT),
            timeout_s=900,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def _downloads(self) -> list[str]:
        """This machine's way to the package index, for the build alone."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
        )
        told = (line.partition("=") for line in listed.stdout.splitlines())
        given = {name.rpartition(".")[2]: value.strip("'") for name, _, value in told}
        kept = {name: value for name, value in given.items() if name in _DOWNLOADS}
        volumes = [f"{self.folder}/pip.conf:/etc/pip.conf:ro"]
        if "cert" in given:
            kept["cert"] = "/run/authorities.crt"
            volumes.append(f"{given['cert']}:{kept['cert']}:ro")
        lines = (f"{name} = {value}" for name, value in kept.items())
        (self.folder / "pip.conf").write_text("\n".join(("[global]", *lines, "")))
        return volumes

    def podman(self, *arguments: str) -> str:
        done = self.tried(*arguments)
        assert done.returncode == 0, f"podman {' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def tried(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """podman, however it ends."""
        return self._run("podman", *arguments, timeout_s=300)

    def _run(self, *command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """With mounts of its own: what is mounted for the store is gone with the command."""
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", _ONE_HIERARCHY, "sh", *command],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
