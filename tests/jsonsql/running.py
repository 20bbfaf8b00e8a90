"""Owns running the loopback server beside a test, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from tests.jsonsql.server import JsonSqlServer, Settings


@contextmanager
def serving(settings: Settings) -> Iterator[JsonSqlServer]:
    """The server, ready at its ``url``, until the block ends."""
    server = JsonSqlServer(settings)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: _run(loop, serve()), daemon=True)
    thread.start()
    try:
        if not ready.wait(20):
            raise RuntimeError("the loopback server did not start")
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    try:
        loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
