"""Owns child processes that may not outlive this one, even if it is killed with SIGKILL.

A small second process (this file, run by path) holds the reading end of a pipe whose only writer is this process. It
is told the ids of the children; when the pipe ends without their having been taken back, it kills them. A signal on
the parent's death (``PR_SET_PDEATHSIG``) would not do: Linux ties it to the *thread* that started the child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import IO

_lock = threading.Lock()
_pipe = -1  # the writing end
_owner_pid = 0


def watch(pid: int) -> None:
    """From now on the child `pid` is killed when this process ends, however it ends."""
    _tell(b"+%d\n" % pid)


def unwatch(pid: int) -> None:
    """Takes `watch` back; to be called as soon as the child has been waited for, since its id may be used again."""
    _tell(b"-%d\n" % pid)


def _tell(line: bytes) -> None:
    global _pipe, _owner_pid
    with _lock:
        if _owner_pid != os.getpid():
            reading_end, _pipe = os.pipe()
            # Not waited for on purpose: it must be the last one to go. A session of its own keeps Ctrl-C from it.
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=reading_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd=os.path.sep,
            )
            guard.returncode = 0  # so that Popen's finaliser does not warn about a process which is meant to run on
            os.close(reading_end)
            _owner_pid = os.getpid()
        os.write(_pipe, line)


def _guard(lines: IO[bytes]) -> None:
    watched: set[int] = set()
    for line in lines:
        pid = int(line[1:])
        if line[:1] == b"+":
            watched.add(pid)
        else:
            watched.discard(pid)
    for pid in watched:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue  # it was faster


if __name__ == "__main__":
    _guard(sys.stdin.buffer)
