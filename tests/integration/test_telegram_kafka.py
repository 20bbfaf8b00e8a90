"""Chats into a real Kafka by the real command: values as the schema says, tails, edits, deletions, and the way out."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastavro
import pytest
import yaml
from aiokafka import AIOKafkaConsumer, TopicPartition

from producer.sources.telegram import record
from tests.mtproto import Chat, Fault, Server, World, build, made_chat

ROOT = Path(__file__).resolve().parents[2]
CHAT = 1001
CHAT_ID = -1000000000000 - CHAT
VALUE = fastavro.parse_schema(json.loads((ROOT / "schemas" / "telegram_message.avsc").read_text()))
KEY = fastavro.parse_schema(record.avro_schema(record.KEY, record="MessageKey"))


def configuration(folder: Path, server: Server, kafka_bootstrap: str, topic: str, *, session: str | None = None,
                  account: dict[str, Any] | None = None, **stream: Any) -> Path:  # fmt: skip
    settings = {"type": "telegram", "api_id": 1, "api_hash": "none", "session": session or server.session()}
    document = {
        "app": topic,
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "checkpoints": {"type": "file", "path": str(folder / "state")},
        "http": {"port": 0},
        "sources": {"account": settings | {"min_delay_s": 0, "request_timeout_s": 2.0} | (account or {})},
        "streams": [
            {"name": "demo", "source": "account", "chat": "@demo", "topic": topic, "poll_interval_s": 0.2} | stream
        ],
    }
    path = folder / "telegram.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@asynccontextmanager
async def running(config: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`producer run`, ended in any case."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "producer", "run", str(config), "--json", *arguments, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run(config: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    """A run to its end: standard output and standard error."""
    async with running(config, *arguments) as process, asyncio.timeout(100):
        out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return out.decode(), err.decode()


class Topic:
    """Reads a topic, decoded, in the order of its one partition."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self._at = TopicPartition(name, 0)
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
        self.records: list[tuple[tuple[int, int], dict[str, Any] | None]] = []

    async def __aenter__(self) -> Topic:
        await self._consumer.start()
        self._consumer.assign([self._at])
        await self._consumer.seek_to_beginning(self._at)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not wanted():
                for found in (await self._consumer.getmany(timeout_ms=200)).values():
                    for raw in found:
                        key: Any = fastavro.schemaless_reader(io.BytesIO(raw.key), KEY)
                        value: Any = raw.value and fastavro.schemaless_reader(io.BytesIO(raw.value), VALUE)
                        self.records.append(((key["chat_id"], key["id"]), value))

    async def holds(self, count: int) -> list[tuple[tuple[int, int], dict[str, Any] | None]]:
        await self.until(lambda: len(self.records) >= count)
        return self.records


@pytest.fixture
def chat() -> Chat:
    return made_chat(CHAT, 3000, username="demo", title="Demo")


@pytest.fixture
async def server(chat: Chat) -> AsyncIterator[Server]:
    async with Server(World([chat])) as server:
        yield server


async def test_every_value_in_kafka_is_that_of_its_message(
    server: Server, chat: Chat, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = configuration(tmp_path, server, kafka_bootstrap, unique, partitions=1)
    out, _ = await run(config, "--once")
    assert json.loads(out)["acked"] == 3000
    async with Topic(kafka_bootstrap, unique) as topic:
        records = await topic.holds(3000)
    assert [key for key, _ in records] == [(CHAT_ID, number) for number in range(1, 3001)]
    for (_, number), value in records:
        message = build(number, chat.peer)
        assert value is not None
        assert value["date"] == message.date
        assert value["text"] == (None if value["kind"] == "service" else message.message)
        assert value["edit_date"] == getattr(message, "edit_date", None)
        assert value["sender_name"] == f"User{value['sender_id']} Sender"
        assert value["link"] == f"https://t.me/demo/{number}"
        reply = message.reply_to and message.reply_to.reply_to_msg_id
        assert value["reply_to_id"] == reply


async def test_a_tail_brings_new_messages_edits_and_deletions_and_ends_cleanly_on_sigterm(
    server: Server, chat: Chat, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = configuration(tmp_path, server, kafka_bootstrap, unique, partitions=1, mode="snapshot_then_tail")
    edited_at = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    async with Topic(kafka_bootstrap, unique) as topic, running(config) as process:
        await topic.holds(3000)
        chat.append(5)
        await topic.holds(3005)
        chat.edit(2999, "second thoughts", edited_at)
        await topic.holds(3006)
        chat.delete([2998])
        await topic.holds(3007)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await process.communicate()
    assert process.returncode == 143
    assert topic.records[-2][0] == (CHAT_ID, 2999)
    assert topic.records[-2][1] is not None
    assert (topic.records[-2][1]["text"], topic.records[-2][1]["edit_date"]) == ("second thoughts", edited_at)
    assert topic.records[-1] == ((CHAT_ID, 2998), None)


async def test_sigterm_in_a_flood_wait_of_an_hour_ends_in_time(
    server: Server, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    server.script.faults = [Fault("flood", 12, every=1, value=3600)]
    config = configuration(tmp_path, server, kafka_bootstrap, unique, partitions=1, max_parallel=1)
    async with Topic(kafka_bootstrap, unique) as topic, running(config) as process:
        await topic.holds(500)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await process.communicate()
        assert process.returncode == 143
        server.script.faults = []
        await run(config, "--once")
        await topic.holds(3000)
    assert [key for key, _ in topic.records] == [(CHAT_ID, number) for number in range(1, 3001)]


async def test_a_chat_by_offset_is_planned_sent_verified_and_never_mixed_with_ids(
    server: Server, chat: Chat, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = configuration(tmp_path, server, kafka_bootstrap, unique, partitions=1, traversal="OFFSET")
    assert "OFFSET" in await command("plan", config)
    out, _ = await run(config, "--once")
    assert json.loads(out)["acked"] == 3000
    async with Topic(kafka_bootstrap, unique) as topic:
        assert [key[1] for key, _ in await topic.holds(3000)] == list(range(1, 3001))
    chat.delete(range(10, 20))
    chat.append(25)
    out, _ = await run(config, "--once")  # a snapshot that is done stays as it is
    assert json.loads(out)["acked"] == 0
    chat.ids = sorted({*chat.ids, *range(10, 20)})
    assert "agree" in (await command("verify", config, "demo")).lower()
    chat.put(build(15, chat.peer, kind="text", text="changed"))
    assert "15" in await command("verify", config, "demo", code=1)
    config = configuration(tmp_path, server, kafka_bootstrap, unique, partitions=1, traversal="ID_RANGE")
    _, err = await run(config, "--once", code=2)
    assert "traversal has changed" in err
    assert "checkpoint reset" in err


async def command(name: str, config: Path, *arguments: str, code: int = 0) -> str:
    """Another command with the configuration: what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "producer", name, str(config), *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == code, out.decode() + err.decode()
    return out.decode() + err.decode()


async def test_fields_that_are_left_out_are_left_out_of_the_schema_too(
    server: Server, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = configuration(tmp_path, server, kafka_bootstrap, unique, exclude=["sender_name", "sender_username"])
    assert json.loads((await run(config, "--once"))[0])["acked"] == 3000


@pytest.mark.parametrize(
    ("fault", "chat_name", "code", "line"),
    [
        (Fault("error", 1, every=1, value="400:CONNECTION_API_ID_INVALID", request="GetConfigRequest"), "@demo", 2,
         "api_id"),
        (Fault("error", 1, every=1, value="401:SESSION_REVOKED", request="GetUsersRequest"), "@demo", 2, "revoked"),
        (Fault("error", 1, every=1, value="401:USER_DEACTIVATED_BAN", request="GetUsersRequest"), "@demo", 2, "banned"),
        (Fault("error", 1, every=1, value="400:CHANNEL_PRIVATE"), "@demo", 2, "private"),
        (Fault("error", 1, every=1, value="400:CHAT_ADMIN_REQUIRED"), "@demo", 2, "no permission"),
        (Fault("error", 99, value="500:X"), "@nobody", 2, "no such chat"),
    ],
    ids=["api_id", "revoked", "banned", "private", "permission", "unknown"],
)  # fmt: skip
async def test_what_is_wrong_for_good_costs_one_clear_line(
    server: Server, kafka_bootstrap: str, unique: str, tmp_path: Path,
    fault: Fault, chat_name: str, code: int, line: str,
) -> None:  # fmt: skip
    server.script.faults = [fault]
    session = server.session()
    config = configuration(tmp_path, server, kafka_bootstrap, unique, session=session, chat=chat_name)
    _, err = await run(config, "--once", code=code)
    assert session not in err
    assert "Traceback" not in err
    assert len(re.findall(f"(?m)^.*(?:error|failed).*{line}.*$", err)) >= 1


async def test_chats_are_listed_with_what_names_them(server: Server, tmp_path: Path) -> None:
    config = configuration(tmp_path, server, "localhost:1", "t")
    for arguments, expected in (((), 1), (("--match", "dem"), 1), (("--match", "nothing"), 0)):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "producer", "telegram", "chats", str(config), "--json", *arguments, cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        found = json.loads(out)
        assert len(found) == expected
        for row in found:
            assert row == {"chat": f"{CHAT_ID}:{CHAT * 31}", "kind": "supergroup", "title": "Demo", "username": "@demo",
                           "id": CHAT_ID}  # fmt: skip
