"""Owns connections that are lent to one piece of work after the other, each used by one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Lendable(Protocol):
    """What a connection must be able to do; `cancel` from any thread."""

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Lendable)


class Pool(Generic[C]):
    """Idle connections, `keep` of them at most, and new ones by `connect`; `errors` are those of the driver. Safe to
    use from any thread."""

    def __init__(self, connect: Callable[[], C], errors: type[Exception], *, keep: int) -> None:
        self._connect = connect
        self._keep = keep
        self.errors = errors
        self._idle: list[C] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> C:
        """An idle connection, or a new one."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def give(self, connection: C) -> None:
        """Takes a connection back that is fit for use."""
        with self._lock:
            if not self._closed and len(self._idle) < self._keep:
                self._idle.append(connection)
                return
        self.quietly_close(connection)

    def discard(self, connection: C) -> None:
        """Closes a connection that broke, and the idle ones: what broke it is likely to have met them too."""
        with self._lock:
            idle, self._idle = self._idle, []
        for broken in (connection, *idle):
            self.quietly_close(broken)

    def close(self) -> None:
        """Closes what is idle; what is lent is closed when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            self.quietly_close(connection)

    def quietly_close(self, connection: C) -> None:
        with contextlib.suppress(self.errors):
            connection.close()


class Lease(Generic[C]):
    """A connection of the pool while a piece of work uses it. One that was told to stop is not used again: the
    server may hear of it only when it is at its next statement."""

    def __init__(self, pool: Pool[C]) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._connection: C | None = None
        self._stopped = False

    def __enter__(self) -> C:
        connection = self._pool.take()
        with self._lock:
            self._connection = connection
        return connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        assert connection is not None
        if self._stopped:
            self._pool.quietly_close(connection)
            return
        if error is not None:
            try:
                connection.rollback()
            except self._pool.errors:
                self._pool.discard(connection)
                return
        self._pool.give(connection)

    def stop(self) -> None:
        """From another thread: cancels what runs."""
        with self._lock:
            if self._connection is not None:
                self._stopped = True
                with contextlib.suppress(self._pool.errors):
                    self._connection.cancel()
