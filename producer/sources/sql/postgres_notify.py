"""Owns the connection that hears PostgreSQL's NOTIFY. Polling goes on beside it, so what it misses is only later.

LISTEN names a channel and nothing else: none of the role's settings matter to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from producer import postgres_urls
from producer.sources.sql.table import Options

log = structlog.get_logger("producer")

RETRY_S = 1.0
MAX_RETRY_S = 30.0


async def listening(options: Options, channel: str, wake: Callable[[], None]) -> None:
    """Calls `wake` at each NOTIFY on `channel`, and at each new connection; until cancelled."""
    import asyncpg

    lost = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    key = "the source's url"
    url = postgres_urls.for_asyncpg(postgres_urls.read(options.url, key), key)
    wait_s = RETRY_S
    while True:
        try:
            await _until_lost(url, options.connect_timeout_s, channel, wake)
            wait_s = RETRY_S
        except lost as error:
            log.warning("not listening to NOTIFY, polling only", channel=channel, reason=type(error).__name__)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_RETRY_S)


async def _until_lost(url: str, timeout_s: float, channel: str, wake: Callable[[], None]) -> None:
    """Listens on one connection until it breaks."""
    import asyncpg

    connection = await asyncpg.connect(url, timeout=timeout_s, server_settings={"application_name": "producer"})
    lost = asyncio.Event()
    try:
        connection.add_termination_listener(lambda *_: lost.set())
        async with asyncio.timeout(timeout_s):
            await connection.add_listener(channel, lambda *_: wake())
        wake()  # for what was notified before
        await lost.wait()
    finally:
        connection.terminate()
