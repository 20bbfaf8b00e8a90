"""Owns running the loopback server beside a test: in a thread with a loop of its own, or as a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mtproto.script import Fault
from tests.mtproto.server import Server
from tests.mtproto.world import World

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(world: World, faults: Iterable[Fault] = ()) -> Iterator[Server]:
    """A server in a thread; `session` is asked for before the client connects."""
    server = Server(world, faults)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="mtproto")
    thread.start()
    try:
        ready.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """``python -m tests.mtproto`` with the arguments; its session string. The chat is ``@demo``."""
    command = [sys.executable, "-m", "tests.mtproto", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield str(json.loads(running.stdout.readline())["session"])
        finally:
            running.terminate()
