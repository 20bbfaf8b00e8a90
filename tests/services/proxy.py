"""Owns a TCP proxy whose faults are switched while connections are open: latency, a slow line, silence, resets."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

_CHUNK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends RST


class Proxy:
    """Listens on ``127.0.0.1:port`` and passes everything on to `upstream_port` of the same host.

    Switches, each effective at once for open connections too:

    - ``latency_s``: each chunk arrives that much later, in both directions;
    - ``bytes_per_s``: a slow line, per direction; None is without limit;
    - ``silent``: nothing passes, connections stay open (a half-open line); what came meanwhile passes afterwards;
    - ``swallow_answers``: what upstream sends is thrown away (lost acknowledgements); `reset` before going on;
    - ``refuse``: new connections are reset as soon as they are made.
    """

    def __init__(self, upstream_port: int, *, port: int = 0) -> None:
        self.latency_s = 0.0
        self.bytes_per_s: float | None = None
        self.silent = False
        self.swallow_answers = False
        self.refuse = False
        self.accepted = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.upstream_port = upstream_port
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = int(self._socket.getsockname()[1])
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._call(asyncio.start_server(self._serve, sock=self._socket))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._writers) // 2

    def reset(self) -> None:
        """Breaks all open connections off with RST on both sides."""
        self._call(self._reset())

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _reset(self) -> None:
        for writer in list(self._writers):
            connection = writer.get_extra_info("socket")
            if connection is not None and connection.fileno() >= 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(client_out)
        mine = {client_out}
        try:
            if self.refuse:
                return
            server_in, server_out = await asyncio.open_connection("127.0.0.1", self.upstream_port)
            mine.add(server_out)
            self._writers.add(server_out)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(client_in, server_out, answers=False))
                group.create_task(self._pump(server_in, client_out, answers=True))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either side broke off, or we close: so does the other, below
        finally:
            for writer in mine:
                connection = writer.get_extra_info("socket")
                if connection is not None and connection.fileno() >= 0:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
            self._writers -= mine
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(16)

        async def read() -> None:
            while chunk := await source.read(_CHUNK):
                await queue.put((time.monotonic() + self.latency_s, chunk))
            await queue.put((time.monotonic() + self.latency_s, b""))

        async def write() -> None:
            while True:
                due, chunk = await queue.get()
                while (wait_s := due - time.monotonic()) > 0 or self.silent:
                    await asyncio.sleep(max(wait_s, 0.005))
                if not chunk:
                    target.write_eof()
                    return
                if answers and self.swallow_answers:
                    continue
                if answers:
                    self.bytes_down += len(chunk)
                else:
                    self.bytes_up += len(chunk)
                target.write(chunk)
                await target.drain()
                if self.bytes_per_s:
                    await asyncio.sleep(len(chunk) / self.bytes_per_s)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())
