"""The Telegram source against the loopback server: paging, ends, edits, deletions, migration, dates, chats."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest
from telethon import types

from producer.errors import TransientError
from producer.model import Checkpoint, KeyPosition, Page, Split
from producer.sources.telegram.source import TelegramSource
from tests.mtproto import Chat, Fault, Server, World, made_chat
from tests.mtproto.reading import CHAT, Reading, drain, open_source, read_all, stream_config
from tests.mtproto.world import SENDERS, date_of

MARKED = -1000000000000 - CHAT


def demo(count: int = 500, **fields: Any) -> Chat:
    return made_chat(CHAT, count, **({"username": "demo", "title": "Demo"} | fields))


async def ids_of(there: Chat, *faults: Fault, hidden: frozenset[int] = frozenset(), **stream: Any) -> Reading:
    """A snapshot of the chat."""
    async with Server(World([there], hidden), faults) as server, open_source(server) as source:
        return await read_all(source, stream_config(**stream))


# --- paging --------------------------------------------------------------------------------------------------------


async def test_a_snapshot_holds_every_message_once_in_order() -> None:
    assert (await ids_of(demo(2345))).ids == list(range(1, 2346))


async def test_a_page_holds_no_more_rows_than_asked_for() -> None:
    async with Server(World([demo(500)])) as server, open_source(server) as source:
        reading = await read_all(source, stream_config(), limit=64)
    assert {page.rows for page in reading.pages[:-1]} == {64}
    assert reading.ids == list(range(1, 501))


async def test_an_empty_chat_ends_at_once() -> None:
    assert (await ids_of(demo(0))).ids == []


async def test_holes_of_deleted_messages_never_stall() -> None:
    chat = demo(5000)
    chat.delete(range(100, 4900))
    assert (await ids_of(chat)).ids == [*range(1, 100), *range(4900, 5001)]


async def test_answers_of_nothing_but_empty_messages_are_not_the_end() -> None:
    chat = demo(900)
    chat.empty(range(401, 701))
    assert (await ids_of(chat)).ids == [*range(1, 401), *range(701, 901)]


async def test_an_empty_answer_before_the_newest_message_is_not_the_end() -> None:
    reading = await ids_of(demo(900), Fault("empty", 6, every=3, times=4))
    assert reading.ids == list(range(1, 901))


async def test_a_chat_that_answers_nothing_for_ever_fails_and_does_not_end() -> None:
    async with Server(World([demo(900)]), [Fault("empty", 7, every=2)]) as server, open_source(server) as source:
        stream = stream_config()
        dataset = await source.describe(stream)
        reader = await source.reader(stream, dataset, (await source.plan(stream, dataset))[0])
        position = (await reader.fetch(None, 300)).position
        server.script.faults = [Fault("empty", n) for n in range(1, 500, 2)]
        server.script.seen.clear()
        with pytest.raises(TransientError, match="answers with nothing after message 300"):
            await reader.fetch(position, 1000)


async def test_a_last_answer_shifted_over_rows_seen_before_gives_no_duplicates() -> None:
    reading = await ids_of(demo(250), Fault("shift", 1, every=1))
    assert reading.ids == list(range(1, 251))


async def test_compressed_answers_are_read() -> None:
    async with Server(World([demo(300)]), compress=True) as server, open_source(server) as source:
        assert (await read_all(source, stream_config())).ids == list(range(1, 301))


async def test_a_missing_sender_never_drops_a_row() -> None:
    reading = await ids_of(demo(60), hidden=frozenset(SENDERS[:3]))
    assert reading.ids == list(range(1, 61))
    assert {row["sender_name"] for row in reading.rows if row["sender_id"] in SENDERS[:3]} == {None}
    assert all(row["sender_name"] for row in reading.rows if row["sender_id"] in SENDERS[3:])


async def test_messages_sent_and_deleted_while_reading_lose_nothing_else() -> None:
    chat = demo(2000)
    async with Server(World([chat])) as server, open_source(server) as source:
        stream = stream_config(mode="snapshot_then_tail")
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        reader = await source.reader(stream, dataset, split)
        reading = Reading()
        page = await reader.fetch(None, 300)
        chat.delete(range(350, 420))
        chat.append(77)
        reading.pages.append(page)
        await drain(reader, reading, page.position)
    assert reading.ids == [*range(1, 350), *range(420, 2078)]


async def test_several_splits_hold_the_chat_between_them_in_equal_shares() -> None:
    chat = demo(90_000)
    chat.delete(range(1, 30_000))
    async with Server(World([chat])) as server, open_source(server) as source:
        stream = stream_config(max_parallel=8)
        dataset = await source.describe(stream)
        splits = await source.plan(stream, dataset)
        assert len(splits) == 3
        sizes = []
        reading = Reading()
        for split in splits:
            before = len(reading.ids)
            await drain(await source.reader(stream, dataset, split), reading, limit=5000)
            sizes.append(len(reading.ids) - before)
    assert sorted(reading.ids) == list(range(30_000, 90_001))
    assert max(sizes) - min(sizes) <= 2


async def test_a_restart_goes_on_after_the_last_position() -> None:
    world = World([demo(1500)])
    async with Server(world) as server:
        async with open_source(server) as source:
            stream = stream_config()
            dataset = await source.describe(stream)
            (split,) = await source.plan(stream, dataset)
            first = await (await source.reader(stream, dataset, split)).fetch(None, 700)
        async with open_source(server) as source:
            reading = Reading([first])
            await drain(await source.reader(stream, await source.describe(stream), split), reading, first.position)
    assert first.position == KeyPosition((MARKED, 700))
    assert reading.ids == list(range(1, 1501))


async def test_the_estimate_of_what_remains_shrinks_to_nothing() -> None:
    async with Server(World([demo(1000)])) as server, open_source(server) as source:
        stream = stream_config()
        dataset = await source.describe(stream)
        (split,) = await source.plan(stream, dataset)
        assert dataset.rows_estimate == 1000
        reader = await source.reader(stream, dataset, split)
        page = await reader.fetch(None, 400)
        assert await source.remaining(stream, dataset, Checkpoint(split, page.position)) == 600


# --- tails ---------------------------------------------------------------------------------------------------------


async def caught_up(source: TelegramSource, **stream: Any) -> tuple[Any, Reading, Any]:
    """A following reader that has read all there is, what it read, and where it stands."""
    config = stream_config(**({"mode": "snapshot_then_tail"} | stream))
    dataset = await source.describe(config)
    (split,) = await source.plan(config, dataset)
    reader = await source.reader(config, dataset, split)
    reading = Reading()
    return reader, reading, await drain(reader, reading)


async def next_page(reader: Any, position: Any) -> Page:
    """What a poll finds."""
    reading = Reading()
    await drain(reader, reading, position)
    found = [page for page in reading.pages if page.rows or page.tombstones is not None]
    assert len(found) <= 1
    return found[0] if found else reading.pages[-1]


async def test_a_tail_begins_after_the_newest_message_and_follows() -> None:
    chat = demo(300)
    async with Server(World([chat])) as server, open_source(server) as source:
        reader, reading, position = await caught_up(source, mode="tail")
        assert reading.ids == []
        chat.append(250)
        await drain(reader, reading, position)
    assert reading.ids == list(range(301, 551))


async def test_an_idle_poll_costs_one_request() -> None:
    async with Server(World([demo(300)])) as server, open_source(server) as source:
        reader, _, position = await caught_up(source)
        before = server.script.seen["GetHistoryRequest"]
        assert (await next_page(reader, position)).rows == 0
        assert server.script.seen["GetHistoryRequest"] == before + 1


async def test_an_edit_in_the_window_is_sent_anew_with_its_key_and_new_version() -> None:
    chat = demo(300)
    async with Server(World([chat])) as server, open_source(server) as source:
        reader, _, position = await caught_up(source)
        await next_page(reader, position)
        edited_at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
        chat.edit(290, "second thoughts", edited_at)
        page = await next_page(reader, position)
        assert page.position == position
        (row,) = page.batch.to_pylist()
        assert (row["chat_id"], row["id"], row["text"]) == (MARKED, 290, "second thoughts")
        assert row["edit_date"] == edited_at
        assert (await next_page(reader, position)).rows == 0


async def test_a_first_reaction_is_a_change_that_says_it_is_no_edit() -> None:
    chat = demo(300)
    async with Server(World([chat])) as server, open_source(server) as source:
        reader, _, position = await caught_up(source)
        await next_page(reader, position)
        chat.react(295, dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
        (row,) = (await next_page(reader, position)).batch.to_pylist()
    assert (row["id"], row["edit_hide"], row["reactions"]) == (295, True, '{"👍":1}')


async def test_edits_made_while_nobody_looked_are_sent_after_a_restart() -> None:
    chat = demo(300)
    async with Server(World([chat])) as server:
        async with open_source(server) as source:
            _, _, position = await caught_up(source)
        chat.edit(298, "changed meanwhile", dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
        async with open_source(server) as source:
            config = stream_config(mode="snapshot_then_tail")
            dataset = await source.describe(config)
            (split,) = await source.plan(config, dataset)
            page = await next_page(await source.reader(config, dataset, split), position)
    assert {row["id"]: row["text"] for row in page.batch.to_pylist()}[298] == "changed meanwhile"


async def test_a_deletion_in_the_window_becomes_a_tombstone_once() -> None:
    chat = demo(300)
    async with Server(World([chat])) as server, open_source(server) as source:
        reader, _, position = await caught_up(source)
        chat.delete([297, 300])
        page = await next_page(reader, position)
        assert page.tombstones is not None
        assert page.tombstones.to_pylist() == [{"chat_id": MARKED, "id": 297}, {"chat_id": MARKED, "id": 300}]
        assert (await next_page(reader, position)).tombstones is None


async def test_edits_and_deletions_of_a_page_that_failed_come_once_more() -> None:
    chat = demo(300)
    async with Server(World([chat])) as server, open_source(server) as source:
        reader, _, position = await caught_up(source)
        reader.restore(None)
        chat.edit(298, "changed", dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
        chat.delete([297])
        for attempt in range(2):
            page = await next_page(reader, position)
            assert [row["text"] for row in page.batch.to_pylist()] == ["changed"], attempt
            assert page.tombstones is not None
            assert page.tombstones.column("id").to_pylist() == [297]
            reader.restore(None)  # as the engine does when the page could not be sent


async def test_a_large_window_is_read_again_a_hundred_messages_a_poll() -> None:
    chat = demo(900)
    async with Server(World([chat])) as server, open_source(server, edit_window=500) as source:
        reader, _, position = await caught_up(source)
        chat.edit(450, "far back", dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
        chat.edit(300, "too far back", dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
        chat.delete([620])
        pages = [await next_page(reader, position) for _ in range(6)]
    assert [row["text"] for page in pages for row in page.batch.to_pylist()] == ["far back"]
    gone = [number for page in pages if page.tombstones for number in page.tombstones.column("id").to_pylist()]
    assert gone == [620]


async def test_an_empty_answer_is_not_taken_for_deletions() -> None:
    async with Server(World([demo(300)])) as server, open_source(server) as source:
        reader, _, position = await caught_up(source)
        server.script.faults = [Fault("empty", server.script.seen["GetHistoryRequest"] + 1)]
        assert (await reader.fetch(position, 100)).tombstones is None


async def test_announced_edits_and_deletions_reach_far_back_and_come_once_more_when_their_page_failed() -> None:
    chat = demo(500)
    told: list[str] = []
    hooks = {"on_news": told.append}
    async with Server(World([chat])) as server, open_source(server, hooks=hooks, updates=True) as source:
        reader, _, position = await caught_up(source)
        chat.edit(5, "an old one", dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
        chat.delete([7])
        edited = chat.special[5]
        await server.push(types.UpdateEditChannelMessage(edited, chat.pts + 1, 1))
        await server.push(types.UpdateDeleteChannelMessages(CHAT, [7, 10_000], chat.pts + 2, 1))
        while len(told) < 2:
            await asyncio.sleep(0.01)
        for attempt in range(2):
            page = await next_page(reader, position)
            assert [row["text"] for row in page.batch.to_pylist()] == ["an old one"], attempt
            assert page.tombstones is not None
            assert page.tombstones.column("id").to_pylist() == [7]
            reader.restore(None)
    assert told == ["chat", "chat"]


# --- migration -----------------------------------------------------------------------------------------------------


def migrated_world() -> World:
    old = Chat(77, "group", "Family", ids=list(range(10, 400, 3)), migrated_to=CHAT)
    new = demo(300, title="Family", migrated_from=77, migrated_from_max_id=397)
    return World([old, new])


async def test_a_split_that_ends_in_the_supergroup_has_the_whole_group_before_it() -> None:
    async with Server(migrated_world()) as server, open_source(server) as source:
        config = stream_config()
        dataset = await source.describe(config)
        split = Split("verified", KeyPosition((-77, 0)), KeyPosition((MARKED, 50)))
        reading = Reading()
        await drain(await source.reader(config, dataset, split), reading)
    keys = [(row["chat_id"], row["id"]) for row in reading.rows]
    assert keys == [*((-77, i) for i in range(10, 400, 3)), *((MARKED, i) for i in range(1, 51))]


@pytest.mark.parametrize("reference", ["@demo", -77], ids=["supergroup", "group"])
async def test_a_migrated_group_is_read_as_both_chats_by_either_name(reference: str | int) -> None:
    world = migrated_world()
    async with Server(world) as server, open_source(server) as source:
        reading = await read_all(source, stream_config(reference))
    keys = [(row["chat_id"], row["id"]) for row in reading.rows]
    assert keys == [(-77, i) for i in range(10, 400, 3)] + [(MARKED, i) for i in range(1, 301)]


async def test_a_group_that_migrates_while_it_is_followed_goes_on_in_the_supergroup() -> None:
    old, new = Chat(77, "group", "Family", ids=list(range(10, 40))), demo(0)
    world = World([old])
    async with Server(world) as server, open_source(server) as source:
        reader, reading, position = await caught_up(source, chat=-77)
        world.chats.append(new)
        action = types.MessageActionChatMigrateTo(CHAT)
        old.put(types.MessageService(40, old.peer, date=date_of(40), action=action))
        old.migrated_to, new.migrated_from = CHAT, 77
        new.append(120)
        position = await drain(reader, reading, position)
        new.append(5)
        await drain(reader, reading, position)
    keys = [(row["chat_id"], row["id"]) for row in reading.rows]
    assert keys == [(-77, i) for i in range(10, 41)] + [(MARKED, i) for i in range(1, 126)]


async def test_a_position_after_the_migration_survives_a_restart() -> None:
    world = migrated_world()
    async with Server(world) as server, open_source(server, edit_window=0) as source:
        config = stream_config(-77, mode="snapshot_then_tail")
        dataset = await source.describe(config)
        last = (await source.plan(config, dataset))[-1]
        reading = Reading()
        await drain(await source.reader(config, dataset, last), reading, KeyPosition((MARKED, 250)))
    assert reading.ids == list(range(251, 301))


# --- dates ---------------------------------------------------------------------------------------------------------


async def test_dates_are_found_by_seeking_and_both_are_included() -> None:
    chat = demo(100_000)
    where = {"start_date": date_of(70_000), "end_date": date_of(70_250)}
    async with Server(World([chat])) as server, open_source(server) as source:
        reading = await read_all(source, stream_config(where=where))
        asked = server.script.seen["GetHistoryRequest"]
    assert reading.ids == list(range(70_000, 70_251))
    assert asked < 12


async def test_a_date_without_a_zone_is_utc() -> None:
    where = {"start_date": date_of(490).replace(tzinfo=None)}
    assert (await ids_of(demo(500), where=where)).ids == list(range(490, 501))


async def test_dates_outside_of_the_history_give_nothing() -> None:
    assert (await ids_of(demo(50), where={"start_date": dt.datetime(2040, 1, 1)})).ids == []
    assert (await ids_of(demo(50), where={"end_date": dt.datetime(2020, 1, 1)})).ids == []


# --- how a chat is named -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    ["@demo", "demo", "https://t.me/demo", "t.me/demo/12", "https://t.me/+AbCdEf", MARKED, str(MARKED), CHAT,
     f"{MARKED}:{CHAT * 31}", "https://t.me/c/1001/5"],
)  # fmt: skip
async def test_a_chat_can_be_named_in_every_way(reference: str | int) -> None:
    chat = demo(20, invite="AbCdEf")
    assert (await ids_of(chat, chat=reference)).ids == list(range(1, 21))


async def test_private_chats_and_basic_groups_are_read_too() -> None:
    group, friend = made_chat(77, 30, kind="group", title="Family"), made_chat(900, 40, kind="user")
    async with Server(World([group, friend])) as server, open_source(server) as source:
        assert (await read_all(source, stream_config(-77))).ids == list(range(1, 31))
        reading = await read_all(source, stream_config(900))
    assert reading.ids == list(range(1, 41))
    assert {row["link"] for row in reading.rows} == {None}


async def test_a_name_is_resolved_once() -> None:
    async with Server(World([demo(20)])) as server, open_source(server) as source:
        for _ in range(3):
            await source.describe(stream_config())
        assert server.script.seen["ResolveUsernameRequest"] == 1


async def test_several_chats_are_read_side_by_side_on_one_connection() -> None:
    chats = [made_chat(CHAT + n, 700, username=f"chat{n}") for n in range(4)]
    async with Server(World(chats), latency_s=0.01) as server, open_source(server) as source:
        streams = [stream_config(f"@chat{n}", name=f"s{n}") for n in range(4)]
        readings = await asyncio.gather(*(read_all(source, stream) for stream in streams))
        assert server.connections == 1
    assert all(reading.ids == list(range(1, 701)) for reading in readings)
