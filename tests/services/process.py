"""Owns a server's process: started by a list of arguments, watched, waited for until it is ready, stopped."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from producer import guard


class Process:
    """A running server; its output goes to `log`. `user` is whom it runs as where we are root."""

    def __init__(
        self, arguments: Sequence[str], *, log: Path, cwd: Path | None = None, user: str | None = None
    ) -> None:
        self.log = log
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=cwd,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        guard.watch(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, is_ready: Callable[[], bool], timeout_s: float = 90.0) -> None:
        """Returns as soon as `is_ready`; RuntimeError with the log's end if the process ends or time runs out."""
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"{self._process.args!r:.200} did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 15.0) -> None:
        """Sends the signal and waits; SIGKILL when that takes longer than `timeout_s`."""
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        guard.unwatch(self._process.pid)


def account(name: str) -> str | None:
    """The account `name` if we are root (most database servers refuse to run as root), else None: our own."""
    return name if os.geteuid() == 0 else None


def owned_folder(prefix: str, user: str | None) -> Path:
    """A new temporary folder that belongs to `user`."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    if user and user != getpass.getuser():
        shutil.chown(folder, user, user)
    return folder


def program(name: str, *places: str) -> str | None:
    """The path of a program on the PATH, in the system folders, or in one of `places` (glob patterns; newest first)."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found:
        return found
    for place in places:
        root, _, pattern = place.partition("*")
        for path in sorted(Path(root).glob("*" + pattern), reverse=True):
            if (path / name).exists():
                return str(path / name)
    return None
