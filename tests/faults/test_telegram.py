"""The Telegram source under faults: floods, drops, hangs, changed salts, errors. Every id comes, none comes twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from producer.errors import AuthenticationError, SourceUnavailableError, TransientError
from tests.mtproto import Fault, Server, World, made_chat
from tests.mtproto.reading import CHAT, Reading, drain, open_source, read_all, stream_config


async def read(count: int, *faults: Fault, **settings: Any) -> tuple[Reading, list[str], Server]:
    """A snapshot of a chat of `count` messages; what was asked again and why."""
    reasons: list[str] = []
    world = World([made_chat(CHAT, count, username="demo")])
    hooks = {"on_retry": lambda stream, reason: reasons.append(f"{stream} {reason}")}
    async with Server(world, faults) as server, open_source(server, hooks=hooks, **settings) as source:
        return await read_all(source, stream_config()), reasons, server


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("flood", 6, every=7, value=1, times=2), "flood_wait"),
        (Fault("premium", 6, every=7, value=1, times=2), "premium_wait"),
        (Fault("hang", 6, every=7, times=2), "timeout"),
        (Fault("drop", 6, every=3), None),
        (Fault("salt", 6, every=3), None),
        (Fault("error", 6, value="500:INTERNAL"), "server_error"),
        (Fault("error", 6, every=9, value="-503:Timeout", times=1), None),
        (Fault("empty", 6, every=4), None),
        (Fault("shift", 1, every=1), None),
        (Fault("delay", 6, every=5, value=0.2), None),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
async def test_every_id_comes_exactly_once_under(fault: Fault, reason: str | None) -> None:
    reading, reasons, _ = await read(2500, fault, request_timeout_s=3.0)
    assert reading.ids == list(range(1, 2501))
    if reason is not None:
        assert f"chat {reason}" in reasons


async def test_every_id_comes_exactly_once_under_all_faults_at_once() -> None:
    faults = [
        Fault("drop", 5, every=17),
        Fault("salt", 8, every=23),
        Fault("hang", 30, every=200),
        Fault("flood", 11, every=90, value=1),
        Fault("empty", 13, every=19),
        Fault("shift", 1, every=1),
    ]
    reading, reasons, _ = await read(20_000, *faults)
    assert reading.ids == list(range(1, 20_001))
    assert {"chat flood_wait", "chat timeout"} <= set(reasons)


async def test_a_flood_wait_is_kept_to_the_second_and_nothing_is_asked_meanwhile() -> None:
    waits: list[tuple[str, float]] = []
    world = World([made_chat(CHAT, 1500, username="demo")])
    async with (
        Server(world, [Fault("flood", 8, value=2)]) as server,
        open_source(server, hooks={"on_wait": lambda stream, seconds: waits.append((stream, seconds))}) as source,
    ):
        reading = await read_all(source, stream_config())
        assert server.script.seen["GetHistoryRequest"] == 2 + 15 + 1
    assert reading.ids == list(range(1, 1501))
    assert sum(seconds for _, seconds in waits) > 1.9
    assert {stream for stream, _ in waits} == {"chat"}
    assert not reading.errors


async def test_rows_in_hand_are_handed_over_before_a_wait() -> None:
    world = World([made_chat(CHAT, 1500, username="demo")])
    async with Server(world, [Fault("flood", 8, value=3600)]) as server, open_source(server) as source:
        stream = stream_config()
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        reader = await source.reader(stream, dataset, split)
        page = await reader.fetch(None, 1500)
        assert (page.rows, page.last) == (500, False)
        waiting = await reader.fetch(page.position, 1500)
        assert (waiting.rows, waiting.last, waiting.position) == (0, False, page.position)


async def test_a_wait_of_an_hour_ends_at_once_when_the_fetch_is_cancelled() -> None:
    async with (
        Server(World([made_chat(CHAT, 300, username="demo")]), [Fault("flood", 3, value=3600)]) as server,
        open_source(server) as source,
    ):
        stream = stream_config()
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        reader = await source.reader(stream, dataset, split)
        assert (await reader.fetch(None, 300)).rows == 0
        waiting = asyncio.create_task(reader.fetch(None, 300))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_hung_answer_costs_its_deadline_and_one_connection() -> None:
    reading, reasons, server = await read(1000, Fault("hang", 5), request_timeout_s=1.0)
    assert reading.ids == list(range(1, 1001))
    assert reasons == ["chat timeout"]
    assert server.connections == 2


async def test_a_hung_answer_for_one_chat_leaves_the_others_reading() -> None:
    chats = [made_chat(CHAT + n, 3000, username=f"chat{n}") for n in range(3)]
    faults = [Fault("hang", 40)]
    async with Server(World(chats), faults, latency_s=0.005) as server, open_source(server) as source:
        streams = [stream_config(f"@chat{n}", name=f"s{n}") for n in range(3)]
        readings = await asyncio.gather(*(read_all(source, stream) for stream in streams))
    assert all(reading.ids == list(range(1, 3001)) for reading in readings)


async def test_a_server_that_is_gone_is_told_as_unavailable_and_the_reader_goes_on_when_it_is_back() -> None:
    world = World([made_chat(CHAT, 1000, username="demo")])
    server = Server(world)
    await server.__aenter__()
    async with open_source(server) as source:
        stream = stream_config()
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        reader = await source.reader(stream, dataset, split)
        page = await reader.fetch(None, 400)
        reading = Reading([page])
        await server.__aexit__()
        with pytest.raises(SourceUnavailableError):
            await reader.fetch(page.position, 400)
        async with server:
            await drain(reader, reading, page.position)
    assert reading.ids == list(range(1, 1001))


async def test_nothing_is_asked_without_a_deadline() -> None:
    """Whatever request hangs, the source gives up on it in time."""
    world = World([made_chat(CHAT, 1000, username="demo")])
    for request in ("ResolveUsernameRequest", "GetFullChannelRequest", "GetHistoryRequest"):
        fault = Fault("hang", 1, every=1, request=request)
        async with Server(world, [fault]) as server, open_source(server, request_timeout_s=0.2) as source:
            async with asyncio.timeout(5):
                with pytest.raises(TransientError, match=r"no answer within 0.2 s"):
                    await source.describe(stream_config())


async def test_a_session_that_is_ended_while_reading_stops_for_good() -> None:
    world = World([made_chat(CHAT, 1000, username="demo")])
    async with Server(world) as server, open_source(server) as source:
        stream = stream_config()
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        reader = await source.reader(stream, dataset, split)
        page = await reader.fetch(None, 100)
        server.script.faults = [
            Fault("error", server.script.seen["GetHistoryRequest"] + 1, value="401:SESSION_REVOKED")
        ]
        with pytest.raises(AuthenticationError, match="log in again"):
            await reader.fetch(page.position, 100)
