"""Gets what the tests on a real API server need: helm, kubectl, and the programs of the control plane."""

from __future__ import annotations

import functools
import sys

from producer.errors import ConfigError
from tests.cluster import programs
from tests.services import tools


def main() -> int:
    try:
        tools.fetch_helm()
        programs.fetch(functools.partial(print, flush=True))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
