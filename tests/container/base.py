"""Owns the stand-in for the Dockerfile's base image: Debian with its own Python, of the version that the tag names.

The official image is that of the same Debian with a Python built from source. No registry of images is needed.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from producer.embedded import cache_dir, only_one
from producer.errors import ConfigError

NAME = "docker.io/library/python:3.13-slim"
_SUITE = "trixie"  # its Python is 3.13
_PACKAGES = ("python3", "python3-venv", "libpython3-dev", "ca-certificates")
_MIRROR = "http://deb.debian.org/debian"


def archive() -> Path:
    return cache_dir() / f"python-{_SUITE}.tar"


def fetch(note: Callable[[str], None]) -> None:
    """Makes the archive where it is not there yet (20 s), with this machine's settings of apt for downloads."""
    if archive().exists():
        return
    with only_one(cache_dir()), tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        note(f"making a stand-in for {NAME}")
        settings = Path(scratch, "apt.conf")
        told = ["apt-config", "dump", "--no-empty", "--format", '%f "%v";%n', "Acquire"]
        settings.write_text(subprocess.run(told, capture_output=True, text=True, check=True).stdout)
        new = Path(scratch, "base.tar")
        command = [
            *("mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", f"--aptopt={settings}"),
            '--customize-hook=ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
            *(_SUITE, str(new), f"deb {_MIRROR} {_SUITE} main"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ConfigError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
        new.rename(archive())
