"""Telegram by OFFSET: every message once whatever happens meanwhile, deep offsets, and the limits of a bare count."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from producer.errors import ConfigError, PermanentError, SourceUnavailableError, TransientError
from producer.model import Between, Checkpoint, KeyPosition, OffsetPosition, checkpoint_from_json, checkpoint_to_json
from producer.sources.telegram import TelegramSource
from producer.sources.telegram.offset_reader import OffsetReader
from tests.mtproto import Chat, Fault, Server, World, made_chat
from tests.mtproto.reading import CHAT, open_source, read_all, stream_config
from tests.mtproto.world import date_of


def offset_stream(**more: Any) -> Any:
    return stream_config(traversal="OFFSET", **more)


async def ids_of(chat: Chat, *faults: Fault, limit: int = 1000, **stream: Any) -> list[int]:
    async with Server(World([chat]), faults) as server, open_source(server) as source:
        return (await read_all(source, offset_stream(**stream), limit=limit)).ids


def demo(count: int, **fields: Any) -> Chat:
    return made_chat(CHAT, count, **({"username": "demo", "title": "Demo"} | fields))


@pytest.mark.parametrize("limit", [1, 7, 99, 100, 1000])
async def test_every_message_comes_once_in_order_whatever_the_page_size(limit: int) -> None:
    assert await ids_of(demo(350), limit=limit) == list(range(1, 351))


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("empty", 7, every=5)],
        [Fault("drop", 9, every=8)],
        [Fault("flood", 8, value=1), Fault("premium", 13, value=1)],
        [Fault("hang", 9), Fault("salt", 12), Fault("error", 15, value="500:INTERNAL")],
    ],
    ids=lambda faults: faults[0].kind,
)
async def test_faults_cost_nothing(faults: list[Fault]) -> None:
    assert await ids_of(demo(1500), *faults) == list(range(1, 1501))


async def test_holes_and_empty_messages_are_passed_over() -> None:
    chat = demo(900)
    chat.delete(range(100, 300))
    chat.empty([*range(301, 560), 900])
    assert await ids_of(chat, limit=50) == [*range(1, 100), 300, *range(560, 900)]


async def test_dates_bound_what_is_read() -> None:
    where = {"start_date": date_of(100).isoformat(), "end_date": date_of(400).isoformat()}
    assert await ids_of(demo(900), where=where, limit=70) == list(range(100, 401))
    nothing = {"start_date": date_of(1000).isoformat(), "end_date": date_of(1001).isoformat()}
    assert await ids_of(demo(900), where=nothing) == []


@pytest.mark.parametrize("seed", range(12))
async def test_what_happens_meanwhile_loses_and_repeats_nothing(seed: int) -> None:
    """Between pages: messages are sent and deleted (read ones, the last one read, unread ones), and the reader is made
    anew from its checkpoint, as after a kill; in the middle of a request now and then."""
    chance = random.Random(seed)
    chat = demo(700)
    delivered: list[int] = []
    async with Server(World([chat]), [Fault("empty", 9, every=11)]) as server, open_source(server) as source:
        stream = offset_stream(where={"start_date": date_of(21).isoformat()} if seed % 2 else None)
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        reader: Any = await source.reader(stream, dataset, split)
        saved = Checkpoint(split)
        while not saved.done:
            page = await reader.fetch(saved.position, chance.choice([1, 30, 99, 100, 170]))
            delivered += page.batch.column("id").to_pylist()
            position, detail = page.position or saved.position, page.detail or saved.detail
            saved = Checkpoint(split, position, done=page.last, detail=detail)
            if delivered:
                read, unread = delivered[-60:], [i for i in chat.ids if i > delivered[-1]]
                gone = chance.sample(read, min(len(read), chance.randrange(30)))
                gone += chance.sample(unread, min(len(unread), chance.randrange(15)))
                chat.delete([*gone, *([delivered[-1]] if chance.random() < 0.4 else [])])
            chat.append(chance.randrange(80))
            if chance.random() < 0.5:
                saved = checkpoint_from_json(json.loads(json.dumps(checkpoint_to_json(saved))))
                reader = await source.reader(stream, dataset, saved.split)
                reader.restore(saved.detail)
    first = 21 if seed % 2 else 1
    assert delivered == sorted(set(delivered))
    assert {i for i in chat.ids if first <= i <= 700} <= set(delivered) <= set(range(first, 701))


async def _read_from(source: TelegramSource, position: OffsetPosition) -> list[int]:
    stream = offset_stream()
    dataset = await source.describe(stream)
    (split,) = await source.plan(stream, dataset)
    reader = await source.reader(stream, dataset, split)
    return list((await reader.fetch(position, 5)).batch.column("id").to_pylist())


async def test_a_position_without_its_message_is_counted_among_those_that_are_there() -> None:
    """As after ``producer checkpoint set --offset``: where read messages were deleted, it skips as many as these."""
    chat = demo(500)
    async with Server(World([chat])) as server, open_source(server) as source:
        assert await _read_from(source, OffsetPosition(200)) == [201, 202, 203, 204, 205]
        chat.delete(range(1, 11))
        assert await _read_from(source, OffsetPosition(200)) == [211, 212, 213, 214, 215]
        assert await _read_from(source, OffsetPosition(488)) == [499, 500]
        assert await _read_from(source, OffsetPosition(5000)) == []


async def test_a_million_messages_are_counted_from_the_newest() -> None:
    chat = demo(1_000_000)
    async with Server(World([chat])) as server, open_source(server) as source:
        for read in (0, 1, 123_456, 999_998):
            wanted = list(range(read + 1, min(read + 6, 1_000_001)))
            assert await _read_from(source, OffsetPosition(read)) == wanted
        deepest = max(getattr(request, "add_offset", 0) for request in server.log)
        assert deepest == 999_999


class Shallow(Chat):
    """A chat whose server goes no deeper than 300 messages, whatever is asked for."""

    def window(self, offset_id: int, offset_date: int, add_offset: int, limit: int, *, shift: bool) -> tuple[int, int]:
        return super().window(offset_id, offset_date, min(add_offset, 300), limit, shift=shift)


async def test_a_server_that_goes_less_deep_is_found_out_and_nothing_is_skipped() -> None:
    for count, read in ((380, 380), (900, 0)):
        chat = Shallow(CHAT, ids=list(range(1, count + 1)), username="demo", title="Demo")
        async with Server(World([chat])) as server, open_source(server) as source:
            stream = offset_stream()
            dataset = await source.describe(stream)
            (split,) = await source.plan(stream, dataset)
            reader = await source.reader(stream, dataset, split)
            if read:
                assert (await read_all(source, stream)).ids == chat.ids
                continue
            with pytest.raises(TransientError, match=r"with add_offset 801 .* \(use traversal: ID_RANGE") as refused:
                await reader.fetch(None, 1000)
            assert isinstance(refused.value, SourceUnavailableError)


async def test_how_much_is_left_is_known_after_the_first_page() -> None:
    async with Server(World([demo(500)])) as server, open_source(server) as source:
        stream = offset_stream()
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        reader = await source.reader(stream, dataset, split)
        assert isinstance(reader, OffsetReader)
        assert await source.remaining(stream, dataset, Checkpoint(split)) is None
        page = await reader.fetch(None, 120)
        assert await source.remaining(stream, dataset, Checkpoint(split, page.position)) == 380


async def test_a_position_of_the_other_traversal_is_refused() -> None:
    async with Server(World([demo(50)])) as server, open_source(server) as source:
        stream = offset_stream()
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        reader = await source.reader(stream, dataset, split)
        with pytest.raises(PermanentError, match="the checkpoint is not one of an OFFSET stream"):
            await reader.fetch(KeyPosition((CHAT, 5)), 10)
        assert dataset.fingerprint("OFFSET") != dataset.fingerprint("ID_RANGE")


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"order_by": ["date"]}, "order_by: messages come in the order of their ids"),
        ({"key": ["id"]}, "key: a message's key is chat_id, id"),
    ],
)
async def test_what_a_chat_cannot_do_is_refused_by_offset_too(option: dict[str, Any], error: str) -> None:
    async with Server(World([demo(5)])) as server, open_source(server) as source:
        with pytest.raises(ConfigError, match=error):
            await source.describe(offset_stream(**option))


async def test_a_replay_by_offset_is_refused() -> None:
    async with Server(World([demo(5)])) as server, open_source(server) as source:
        dataset = await source.describe(offset_stream())
        with pytest.raises(ConfigError, match="an OFFSET stream cannot read a range of messages"):
            await source.replay(offset_stream(), dataset, "replay-1", Between("id", 1, 2))


@pytest.mark.parametrize("mode", ["tail", "snapshot_then_tail"])
def test_offset_is_for_snapshots(mode: str) -> None:
    with pytest.raises(ValueError, match=f"traversal OFFSET cannot be used with mode {mode}; use ID_RANGE"):
        offset_stream(mode=mode)
