"""Gets what the tests of the image need: buildah, podman, and the stand-in for the Dockerfile's base image."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

from producer.errors import ConfigError
from tests.container import base

_PACKAGES = ("buildah", "podman", "netavark", "mmdebstrap", "catatonit")


def main() -> int:
    lacking = [name for name in ("buildah", "podman", "mmdebstrap") if shutil.which(name) is None]
    install = ["apt-get", "install", "-y", "--no-install-recommends", *_PACKAGES]
    if os.geteuid() != 0 or (lacking and shutil.which("apt-get") is None):
        print(f"The image is built and run as root on Debian, with {' '.join(_PACKAGES)} installed", file=sys.stderr)
        return 1
    if lacking:
        print(f"installing {', '.join(_PACKAGES)}", flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], install):
            done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{' '.join(install)} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            return 1
    try:
        base.fetch(functools.partial(print, flush=True))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
