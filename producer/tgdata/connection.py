"""One account's connection, shared by all calls of a `TgData`: open while at least one of them uses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from producer.errors import ConfigError, PermanentError
from producer.sources.telegram.config import TelegramConfig
from producer.sources.telegram.source import TelegramSource


class Connection:
    """Counts its users, in one event loop at a time: a second loop gets a source of its own once the first is done."""

    def __init__(self, config: TelegramConfig) -> None:
        self._config = config
        self._loop: asyncio.AbstractEventLoop | None = None
        self._source: TelegramSource
        self._changing: asyncio.Lock
        self._users = 0
        self._closed = 0  # how often `close` was called
        self._scopes: set[asyncio.Timeout] = set()

    async def acquire(self) -> Lease:
        """Connects where nobody has yet. Each one needs a `release`, unless it raises."""
        self._enter_loop()
        self._users += 1
        try:
            async with self._changing:
                await self._source.start()
        except BaseException:
            self._users -= 1
            raise
        return Lease(self, self._source, self._closed)

    async def release(self) -> None:
        """Disconnects after the last user."""
        self._users -= 1
        async with self._changing:
            if not self._users:
                await self._source.close()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Lease]:
        """The connection for the length of a block."""
        lease = await self.acquire()
        try:
            yield lease
        finally:
            await self.release()

    async def close(self) -> None:
        """Disconnects at once. What is being read fails; a later call connects again."""
        if self._loop is not asyncio.get_running_loop():
            return  # no call of this loop has connected
        self._closed += 1
        for scope in self._scopes:
            scope.reschedule(self._loop.time())
        async with self._changing:
            await self._source.close()

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._users and self._loop is not None and not self._loop.is_closed():
            raise ConfigError("this TgData is in use in another event loop", hint="make one TgData for each loop")
        self._loop, self._source, self._changing = loop, TelegramSource(self._config), asyncio.Lock()
        self._users = 0
        self._scopes.clear()


@dataclass(frozen=True, slots=True)
class Lease:
    """One user's part in the connection, until somebody closes that."""

    connection: Connection
    source: TelegramSource
    closed_before: int

    @asynccontextmanager
    async def unless_closed(self) -> AsyncIterator[None]:
        """The body ends with PermanentError as soon as the connection is closed."""
        scopes = self.connection._scopes
        if self.closed_before != self.connection._closed:
            raise self._error()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                scopes.add(scope)
                try:
                    yield
                finally:
                    scopes.discard(scope)
        except TimeoutError:
            if scope.expired():
                raise self._error() from None
            raise

    @staticmethod
    def _error() -> PermanentError:
        return PermanentError("TgData was closed while it was reading", hint="its checkpoints are kept; read again")
