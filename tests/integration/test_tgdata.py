"""TgData against the loopback server: every parameter, the checkpoint's promise, metadata; and the guide's examples."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
import warnings
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pandas as pd
import pytest
from aiokafka import AIOKafkaConsumer
from redis.asyncio import Redis

from producer.errors import CheckpointCorruptError, ConfigError
from producer.tgdata import TgData, next_delay
from tests.mtproto import Chat, Fault, Server, World, made_chat
from tests.mtproto.world import SENDERS, date_of

ROOT = Path(__file__).resolve().parents[2]
GROUP = 12345


@pytest.fixture
def chat() -> Chat:
    return made_chat(GROUP, 1250, username="demo")


@pytest.fixture
async def server(chat: Chat) -> AsyncIterator[Server]:
    async with Server(World([chat])) as server:
        yield server


@pytest.fixture
def tg(server: Server) -> TgData:
    return client(server)


def client(server: Server, **settings: Any) -> TgData:
    return TgData(api_id=1, api_hash="secret", session=server.session(), min_delay_s=0, **settings)


async def batches(tg: TgData, **arguments: Any) -> list[pd.DataFrame]:
    return [batch async for batch in tg.get_all_messages(**({"group_id": GROUP} | arguments))]


def ids(frames: list[pd.DataFrame]) -> list[int]:
    return [int(number) for frame in frames for number in frame["id"]]


async def test_all_messages_come_oldest_first_in_batches_of_the_size_asked_for(tg: TgData) -> None:
    found = await batches(tg, batch_size=500)
    assert [len(frame) for frame in found] == [500, 500, 250]
    assert ids(found) == list(range(1, 1251))


async def test_a_group_may_be_named_by_its_name(tg: TgData) -> None:
    assert len(ids(await batches(tg, group_id="@demo"))) == 1250


async def test_rows_without_a_known_sender_are_kept(chat: Chat) -> None:
    async with Server(World([chat], hidden_users=frozenset(SENDERS))) as server:
        assert len(ids(await batches(client(server)))) == 1250


async def test_metadata_is_an_attribute_without_warnings_and_survives_slicing(tg: TgData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = (await batches(tg, batch_size=500))[1]
        assert frame.metadata["rate_limit_remaining"] == 100
        assert frame.metadata["response_time"] > 0
        assert (frame.metadata["current"], frame.metadata["total"]) == (1000, 1250)
        assert frame.head(3).metadata == frame.metadata
        assert frame.iloc[-1]["id"] == frame.metadata["last_message_id"] == 1000


async def test_progress_tells_the_real_total_and_may_be_a_coroutine(tg: TgData) -> None:
    told: list[tuple[int, int | None]] = []

    async def callback(current: int, total: int | None, rate: float) -> None:
        assert rate > 0
        told.append((current, total))

    await batches(tg, batch_size=500, after_id=250, progress_callback=callback)
    assert told == [(500, 1000), (1000, 1000)]


async def test_progress_can_be_shown(tg: TgData, capsys: pytest.CaptureFixture[str]) -> None:
    await tg.get_messages(GROUP, with_progress=True)
    assert "1,250 of 1,250 messages" in capsys.readouterr().err


async def test_after_id_with_dates_and_limit_gives_all_of_them(tg: TgData) -> None:
    where: Any = {"start_date": date_of(100), "end_date": date_of(900)}
    frame = await tg.get_messages(GROUP, after_id=150, limit=300, **where)
    assert ids([frame]) == list(range(151, 451))
    assert frame.metadata["total"] == 300
    assert ids(await batches(tg, after_id=150, **where)) == list(range(151, 901))
    assert (await tg.get_messages(GROUP, after_id=150, **where)).metadata["total"] == 750


async def test_no_new_messages_are_an_empty_frame_with_the_same_columns(tg: TgData) -> None:
    empty, full = await tg.get_messages(GROUP, after_id=1250), await tg.get_messages(GROUP, limit=5)
    assert empty.empty
    assert list(empty.dtypes) == list(full.dtypes)
    assert list(empty.columns) == list(full.columns)


async def test_batch_mode_returns_an_iterator(tg: TgData) -> None:
    found = [frame async for frame in await tg.get_messages(GROUP, batch_mode=True, batch_size=1000)]
    assert [len(frame) for frame in found] == [1000, 250]


async def test_adaptive_sizing_starts_small_and_grows(tg: TgData) -> None:
    sizes = [len(frame) for frame in await batches(tg, batch_size=600, use_adaptive_sizing=True)]
    assert sizes[0] == 100
    assert sizes[1] in (100, 200)
    assert sum(sizes) == 1250
    assert max(sizes) <= 600


async def test_the_delay_between_batches_doubles_while_the_rate_is_short_and_shrinks_to_its_least() -> None:
    assert next_delay(1.0, 1.0, remaining=5) == 2.0
    assert next_delay(20.0, 1.0, remaining=0) == 30.0
    assert next_delay(10.0, 1.0, remaining=100) == 9.0
    assert next_delay(1.0, 1.0, remaining=100) == 1.0
    assert next_delay(0.0, 0.0, remaining=0) == 1.0


async def test_profile_photos_are_written_where_asked(server: Server, tmp_path: Path) -> None:
    from telethon import types

    from tests.mtproto import world

    class WithPhotos(World):
        def users_of(self, messages: Any) -> list[Any]:
            found = []
            for number in sorted({u for m in messages for u in m.users}):
                user = world.user(number)
                user.photo = types.UserProfilePhoto(number, 2)
                found.append(user)
            return found

    server.world = WithPhotos(server.world.chats)
    tg = client(server, profile_photos_path=str(tmp_path))
    assert (await tg.get_messages(GROUP, limit=5))["sender_photo"].isna().all()
    frame = await tg.get_messages(GROUP, limit=50, include_profile_photos=True)
    assert frame["sender_photo"].notna().all()
    assert len(list(tmp_path.iterdir())) == len(SENDERS)


# --- the checkpoint --------------------------------------------------------------------------------------------------


async def test_the_checkpoint_file_has_the_documented_form(tg: TgData, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    await batches(tg, checkpoint_file=path, limit=700)
    found = json.loads(path.read_text())
    assert (found["last_message_id"], found["total_processed"], found["group_id"]) == (700, 700, GROUP)
    assert datetime.fromisoformat(found["last_updated"]).tzinfo is not None
    assert list(tmp_path.iterdir()) == [path]


async def test_a_second_run_goes_on_after_the_checkpoint(tg: TgData, tmp_path: Path, chat: Chat) -> None:
    path = tmp_path / "checkpoint.json"
    first = await batches(tg, checkpoint_file=path, limit=700)
    second = await batches(tg, checkpoint_file=path)
    chat.append(3)
    third = await tg.get_messages(GROUP, checkpoint_file=path)
    assert ids([*first, *second, third]) == list(range(1, 1254))
    assert json.loads(path.read_text())["total_processed"] == 1253


async def test_a_crash_inside_the_loop_delivers_the_batch_again(tg: TgData, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    processed: list[int] = []

    async def crash() -> None:
        async for batch in tg.get_all_messages(GROUP, checkpoint_file=path, batch_size=500):
            if batch.metadata["last_message_id"] == 1000:
                raise RuntimeError("in the loop")
            processed.extend(ids([batch]))

    with pytest.raises(RuntimeError):
        await crash()
    assert json.loads(path.read_text())["last_message_id"] == 500
    processed += ids(await batches(tg, checkpoint_file=path))
    assert processed == list(range(1, 1251))


async def test_the_checkpoint_waits_for_the_next_batch_to_be_asked_for(tg: TgData, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    seen = []
    async for _ in tg.get_all_messages(GROUP, checkpoint_file=path, batch_size=500):
        seen.append(json.loads(path.read_text())["last_message_id"] if path.exists() else 0)
    assert seen == [0, 500, 1000]
    assert json.loads(path.read_text())["last_message_id"] == 1250


async def test_one_frame_is_delivered_again_when_the_block_around_it_fails(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"

    async def crash() -> None:
        async with client(server) as tg:
            await tg.get_messages(GROUP, checkpoint_file=path)
            raise RuntimeError("while processing")

    with pytest.raises(RuntimeError):
        await crash()
    assert not path.exists()
    async with client(server) as tg:
        assert len(await tg.get_messages(GROUP, checkpoint_file=path)) == 1250
    assert json.loads(path.read_text())["last_message_id"] == 1250


@pytest.mark.parametrize("text", ["", "{", "[]", '{"last_message_id": "7"}', '{"last_message_id": -1, "group_id": 1}'])
async def test_a_file_that_is_no_checkpoint_is_refused_and_kept(tg: TgData, tmp_path: Path, text: str) -> None:
    path = tmp_path / "checkpoint.json"
    path.write_text(text)
    with pytest.raises(CheckpointCorruptError, match="not a checkpoint"):
        await batches(tg, checkpoint_file=path)
    assert path.read_text() == text


async def test_a_migrated_group_is_read_on_across_the_migration(tmp_path: Path) -> None:
    old = Chat(77, "group", "Family", ids=list(range(1000, 1200)), migrated_to=GROUP)
    new = made_chat(GROUP, 300, username="demo", migrated_from=77, migrated_from_max_id=1199)
    path = tmp_path / "checkpoint.json"
    async with Server(World([old, new])) as server:
        frames: list[pd.DataFrame] = []
        for limit in (150, 150, None):
            frames += await batches(client(server), checkpoint_file=path, limit=limit)
    assert ids(frames) == [*range(1000, 1200), *range(1, 301)]


async def test_floods_and_hangs_are_waited_out(chat: Chat) -> None:
    faults = [Fault("flood", 9, value=1), Fault("hang", 12), Fault("drop", 14)]
    async with Server(World([chat]), faults) as server:
        assert ids(await batches(client(server, request_timeout_s=1.0))) == list(range(1, 1251))


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_missing_setting_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ID", "HASH"):
        monkeypatch.delenv(f"TELEGRAM_API_{name}", raising=False)
    with pytest.raises(ConfigError, match=r"api_id is missing \(give it to TgData, set TELEGRAM_API_ID, or"):
        TgData()


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="min_delay_s"):
        TgData(api_id=1, api_hash="h", session="s", min_delay_s="often")


async def test_the_session_may_stand_in_a_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "session"
    path.write_text(server.session() + "\n")
    tg = TgData(api_id=1, api_hash="h", session=str(path), min_delay_s=0)
    assert len(await tg.get_messages(GROUP, limit=3)) == 3


# --- the guide's examples, as a person runs them ---------------------------------------------------------------------


async def example(server: Server, folder: Path, name: str, *arguments: str, **more: str) -> str:
    """Runs one; its standard output."""
    variables = {
        "TELEGRAM_API_ID": "1", "TELEGRAM_API_HASH": "secret", "TELEGRAM_SESSION": server.session(),
        "TELEGRAM_MIN_DELAY_S": "0", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::FutureWarning",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples" / f"{name}.py"),
        *arguments,
        cwd=folder,
        env=os.environ | variables | more,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(100):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    assert "Traceback" not in err.decode()
    return out.decode()


async def test_level_1_backfill_then_incremental(server: Server, chat: Chat, tmp_path: Path) -> None:
    out = await example(server, tmp_path, "tgdata_level1", "backfill")
    assert "1250 of 1250 messages" in out
    with (tmp_path / "messages.csv").open(newline="") as file:
        assert [int(row["id"]) for row in csv.DictReader(file)] == list(range(1, 1251))
    chat.append(7)
    assert "Found 7 new messages" in await example(server, tmp_path, "tgdata_level1", "incremental")
    assert await example(server, tmp_path, "tgdata_level1", "incremental") == ""


async def test_level_2_with_checkpoints_in_postgresql(
    server: Server, chat: Chat, tmp_path: Path, postgres_dsn: str
) -> None:
    await example(server, tmp_path, "tgdata_level2", "backfill", DATABASE_URL=postgres_dsn)
    chat.append(9)
    await example(server, tmp_path, "tgdata_level2", "incremental", DATABASE_URL=postgres_dsn)
    await example(server, tmp_path, "tgdata_level2", "backfill", DATABASE_URL=postgres_dsn)
    db = await asyncpg.connect(postgres_dsn)
    found = [row["id"] for row in await db.fetch("SELECT id FROM messages ORDER BY id")]
    last = await db.fetchval("SELECT last_message_id FROM etl_checkpoints")
    await db.close()
    assert (found, last) == (list(range(1, 1260)), 1259)


async def test_level_3_with_locks_and_checkpoints_in_redis(
    server: Server, chat: Chat, tmp_path: Path, redis_url: str
) -> None:
    await example(server, tmp_path, "tgdata_level3", REDIS_URL=redis_url)
    chat.append(5)
    await example(server, tmp_path, "tgdata_level3", REDIS_URL=redis_url, WORKER_ID="2")
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        assert {int(i) for i in await redis.smembers("etl:ids")} == set(range(1, 1256))
        assert (await redis.hgetall(f"etl:checkpoint:{GROUP}"))["last_id"] == "1255"
        assert (await redis.hgetall(f"etl:checkpoint:{GROUP}"))["worker"] == "2"


@pytest.mark.parametrize("pattern", ["adaptive", "monitor", "guarded"])
async def test_level_4_patterns(server: Server, tmp_path: Path, pattern: str) -> None:
    out = await example(server, tmp_path, "tgdata_level4", pattern)
    assert "250 messages up to 1250" in out
    assert json.loads((tmp_path / "checkpoint.json").read_text())["last_message_id"] == 1250
    assert ("Progress: 1,000/1,250" in out) == (pattern == "monitor")


async def test_level_4_batches_into_kafka(server: Server, tmp_path: Path, kafka_bootstrap: str, unique: str) -> None:
    await example(server, tmp_path, "tgdata_level4", "batches", KAFKA_BOOTSTRAP=kafka_bootstrap, KAFKA_TOPIC=unique)
    consumer = AIOKafkaConsumer(unique, bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: list[int] = []
    async with asyncio.timeout(30):
        while len(found) < 1250:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [int(record.key) for record in records]
    await consumer.stop()
    assert found == list(range(1, 1251))
