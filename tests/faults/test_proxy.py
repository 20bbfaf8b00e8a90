"""The proxy that other fault tests rely on does what its switches say."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiokafka import AIOKafkaProducer

from producer.embedded import EmbeddedKafka
from tests.services.proxy import Proxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[Proxy], Awaitable[Connection]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    opened: list[asyncio.StreamWriter] = []

    async def connect(proxy: Proxy) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        opened.append(writer)
        return reader, writer

    yield connect
    for writer in opened:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _echoed(connection: Connection, data: bytes) -> float:
    """Seconds until all of `data` came back."""
    began = time.monotonic()
    connection[1].write(data)
    async with asyncio.timeout(30):
        assert await connection[0].readexactly(len(data)) == data
    return time.monotonic() - began


async def test_passes_everything_and_the_end_of_the_stream(
    echo: int, make_proxy: Callable[[int], Proxy], connect: Connect
) -> None:
    proxy = make_proxy(echo)
    reader, writer = connection = await connect(proxy)
    await _echoed(connection, bytes(range(256)) * 8192)
    assert proxy.bytes_up == proxy.bytes_down == 256 * 8192
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_latency_delays_each_direction(echo: int, make_proxy: Callable[[int], Proxy], connect: Connect) -> None:
    proxy = make_proxy(echo)
    connection = await connect(proxy)
    await _echoed(connection, b"x")
    proxy.latency_s = 0.2
    assert await _echoed(connection, b"x") >= 0.4


async def test_bandwidth_is_bounded(echo: int, make_proxy: Callable[[int], Proxy], connect: Connect) -> None:
    proxy = make_proxy(echo)
    proxy.bytes_per_s = 1_000_000
    connection = await connect(proxy)
    assert await _echoed(connection, bytes(400_000)) >= 0.3


async def test_silence_keeps_the_connection_and_delivers_afterwards(
    echo: int, make_proxy: Callable[[int], Proxy], connect: Connect
) -> None:
    proxy = make_proxy(echo)
    reader, writer = connection = await connect(proxy)
    await _echoed(connection, b"x")
    proxy.silent = True
    writer.write(b"held")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(1), 0.3)
    assert proxy.open_connections == 1
    proxy.silent = False
    assert await asyncio.wait_for(reader.readexactly(4), 10) == b"held"


async def test_reset_breaks_open_connections_and_new_ones_work(
    echo: int, make_proxy: Callable[[int], Proxy], connect: Connect
) -> None:
    proxy = make_proxy(echo)
    connection = await connect(proxy)
    await _echoed(connection, b"x")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(connection[0].read(1), 10)
    await _echoed(await connect(proxy), b"again")


async def test_refusing_resets_new_connections_only(
    echo: int, make_proxy: Callable[[int], Proxy], connect: Connect
) -> None:
    proxy = make_proxy(echo)
    older = await connect(proxy)
    await _echoed(older, b"x")
    proxy.refuse = True
    with pytest.raises(ConnectionResetError):  # at once, or at the first byte
        reader, _writer = await connect(proxy)
        await asyncio.wait_for(reader.read(1), 10)
    await _echoed(older, b"still")


async def test_swallowed_answers_reach_upstream_only(
    echo: int, make_proxy: Callable[[int], Proxy], connect: Connect
) -> None:
    proxy = make_proxy(echo)
    reader, writer = connection = await connect(proxy)
    await _echoed(connection, b"x")
    proxy.swallow_answers = True
    writer.write(b"lost")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(1), 0.3)
    assert (proxy.bytes_up, proxy.bytes_down) == (5, 1)


async def test_a_client_of_the_broker_stays_behind_the_proxy(
    proxied_kafka: tuple[EmbeddedKafka, Proxy], unique: str
) -> None:
    _broker, proxy = proxied_kafka
    async with AIOKafkaProducer(bootstrap_servers=proxy.address, enable_idempotence=True) as producer:
        before = proxy.bytes_up
        await producer.send_and_wait(unique, bytes(100_000))
        assert proxy.bytes_up - before >= 100_000
        proxy.silent = True
        sent = await producer.send(unique, b"late")
        done, _ = await asyncio.wait([sent], timeout=0.5)
        assert not done
        proxy.silent = False
        assert (await asyncio.wait_for(sent, 30)).offset == 1
