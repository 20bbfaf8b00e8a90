"""Gets what the tests' services need: the broker's and the registry's archives, helm, and the servers of the system.

As root on Debian the servers are installed; elsewhere the command that installs them is printed and we fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from producer.embedded import fetch_jars
from producer.errors import ConfigError
from tests.services import databases, registry, tools


def main() -> int:
    try:
        fetch_jars(print)
        registry.unpacked()
        tools.fetch_helm()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    packages = sorted({*databases.missing().values(), *tools.missing_packages().values()})
    if not packages:
        return 0
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"The tests need {', '.join(packages)}. As root: {' '.join(install)}", file=sys.stderr)
        return 1
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print(f"installing {', '.join(packages)}", flush=True)
    for command in (install, ["apt-get", "update"], install):
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if command is install and done.returncode == 0:
            return 0
    print(f"{' '.join(install)} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
