"""Owns the name of this process among those that share work: ``WORKER_ID``, or else host and process id."""

from __future__ import annotations

import os
import socket


def worker_id() -> str:
    return os.environ.get("WORKER_ID") or f"{socket.gethostname()}:{os.getpid()}"
