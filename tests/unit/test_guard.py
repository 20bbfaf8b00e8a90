"""The guard: what is watched dies with its owner, what was taken back lives on."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

_OWNER = """
import subprocess, sys, time
from producer import guard
children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(3)]
for child in children:
    guard.watch(child.pid)
guard.unwatch(children[0].pid)
print(*(child.pid for child in children), flush=True)
time.sleep(600)
"""


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_watched_children_die_with_an_owner_that_is_killed_and_only_they() -> None:
    with subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        taken_back, *watched = (int(pid) for pid in owner.stdout.readline().split())
        try:
            assert all(map(_alive, [taken_back, *watched]))
            owner.kill()
            owner.wait()
            deadline = time.monotonic() + 20
            while any(map(_alive, watched)):
                assert time.monotonic() < deadline, "a watched child outlived its owner"
                time.sleep(0.02)
            assert _alive(taken_back)
        finally:
            psutil.Process(taken_back).kill()
