"""Owns the claims about how the process ends."""

from __future__ import annotations

import subprocess
import sys

ENDING = """
import atexit, gc
from producer import cli

cli.main = lambda: 7
atexit.register(lambda: print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000))
cli.command()
"""


def test_at_the_end_nothing_is_left_to_look_through_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, "True True\n"), done.stderr
