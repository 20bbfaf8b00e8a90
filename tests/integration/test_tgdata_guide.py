"""The ETL guide of TgData, whole, in order, in one folder: its code as it is, but for ``tgdata`` in the import path.

What the guide leaves to its reader (a database, ``process_batch``, ...) is in `Surroundings`; each block of it has
one step here that runs it and checks what it has done. The chat grows between the steps.
"""

from __future__ import annotations

import ast
import asyncio
import csv
import inspect
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import asyncpg
import pandas as pd
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from redis.asyncio import Redis
from telethon.crypto import AuthKey
from telethon.sessions import SQLiteSession

from producer.tgdata import TgData
from producer.tgdata.reading import Reading
from tests.mtproto import Chat, Fault, Server, World, made_chat

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "tests" / "guides" / "tgdata_etl.md"
GROUP = 12345
KEY = bytes(range(256))


def blocks() -> list[tuple[str, str, str]]:
    """(heading, language, code) of each block of the guide."""
    found = []
    for match in re.finditer(r"^(#+ [^\n]+)$|^```(\w+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1].lstrip("# ")
        else:
            found.append((heading, match[2], match[3]))
    return found


class PostgresPool:
    """A connection with the methods that the guide asks of its pool."""

    def __init__(self) -> None:
        self._connection: Any = None

    async def _open(self) -> Any:
        if self._connection is None:
            self._connection = await asyncpg.connect(os.environ["DATABASE_URL"])
        return self._connection

    async def fetchone(self, query: str, *values: Any) -> Any:
        return await (await self._open()).fetchrow(query, *values)

    async def fetchval(self, query: str, *values: Any) -> Any:
        return await (await self._open()).fetchval(query, *values)

    async def execute(self, query: str, *values: Any) -> Any:
        return await (await self._open()).execute(query, *values)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with (await self._open()).transaction():
            yield

    async def close(self) -> None:
        await self._connection.close()


@dataclass
class Surroundings:
    """What stands around the guide's code: its names, the chat, and the services."""

    chat: Chat
    server: Server
    folder: Path
    redis_url: str
    kafka_bootstrap: str
    topic: str
    pauses: list[float]
    ids: list[int] = field(default_factory=list)  #: what has been processed since the step before
    frames: list[pd.DataFrame] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)  #: ``current_delay`` of pattern 1 at each batch
    gauges: dict[str, float] = field(default_factory=dict)
    kafka: Any = None
    names: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names |= {
            "asyncio": asyncio, "os": os, "time": time, "datetime": datetime, "Optional": Optional,
            "logger": logging.getLogger("guide"), "metrics": types.SimpleNamespace(gauge=self.gauges.__setitem__),
            "PostgresPool": PostgresPool, "Redis": lambda: Redis.from_url(self.redis_url, decode_responses=True),
            "save_to_csv": self.save_to_csv, "process_messages": self.process_batch,
            "process_batch": self.process_batch, "stream_to_kafka": self.stream_to_kafka,
            "get_checkpoint_from_db": self.stored, "get_checkpoint_from_redis": self.stored,
            "update_checkpoint_in_db": lambda last: self.store(last),
        }  # fmt: skip
        self._stored: dict[str, int] | None = None

    def process_batch(self, batch: pd.DataFrame) -> None:
        self.ids += batch["id"].tolist()
        self.frames.append(batch)
        caller = sys._getframe(1).f_locals
        if "current_delay" in caller:
            self.delays.append(caller["current_delay"])

    def save_to_csv(self, batch: pd.DataFrame, path: str, *, append: bool) -> None:
        self.process_batch(batch)
        exists = Path(path).exists()
        batch.to_csv(path, mode="a" if append else "w", header=not exists, index=False)

    async def stream_to_kafka(self, batch: pd.DataFrame) -> None:
        self.process_batch(batch)
        for row in batch.to_dict("records"):
            key = str(row["id"]).encode()
            await self.kafka.send(self.topic, json.dumps(row, default=datetime.isoformat).encode(), key=key)
        await self.kafka.flush()

    def stored(self) -> dict[str, int] | None:
        return self._stored

    def store(self, last: int) -> None:
        self._stored = {"last_message_id": last}

    async def run(self, code: str) -> None:
        """Runs a block, whose names stay for the blocks after it."""
        code = re.sub(r"^from tgdata\b", "from producer.tgdata", code, flags=re.MULTILINE)
        compiled = compile(code, "the guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        running = types.FunctionType(compiled, self.names)()
        if inspect.isawaitable(running):
            await running

    def took(self) -> list[int]:
        """What has been processed since this was asked before."""
        taken, self.ids, self.frames = self.ids, [], []
        return taken

    @property
    def checkpoint(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "checkpoint.json").read_text())
        return found


Step = Callable[[Surroundings, str], Awaitable[None]]


async def signature_of_get_all_messages(s: Surroundings, code: str) -> None:
    _same_parameters(TgData.get_all_messages, code)


async def signature_of_get_messages(s: Surroundings, code: str) -> None:
    _same_parameters(TgData.get_messages, code)


def _same_parameters(method: Any, code: str) -> None:
    """The method takes the signature's parameters, in its order and with its defaults."""
    namespace: dict[str, Any] = {"Optional": Optional, "datetime": datetime, "Callable": Callable, "pd": pd,
                                 "AsyncIterator": AsyncIterator}  # fmt: skip
    exec(code.rstrip() + ": ...\n", namespace)
    name = re.search(r"def (\w+)", code)
    assert name is not None
    wanted = list(inspect.signature(namespace[name[1]]).parameters.values())
    ours = list(inspect.signature(method).parameters.values())[1:]
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in wanted]


async def checkpoint_format(s: Surroundings, code: str) -> None:
    """A file as the guide shows it is accepted, and what is written has the same keys and types."""
    wanted = json.loads(code)
    (s.folder / "checkpoint.json").write_text(code)
    assert (await TgData().get_messages(GROUP, checkpoint_file="checkpoint.json")).empty
    (s.folder / "checkpoint.json").unlink()
    await TgData().get_messages(GROUP, checkpoint_file="other.json")
    written = json.loads((s.folder / "other.json").read_text())
    assert {name: type(value) for name, value in written.items() if name in wanted} == {
        name: type(value) for name, value in wanted.items()
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", written["last_updated"])
    assert written["group_id"] == GROUP


async def level_1_backfill(s: Surroundings, code: str) -> None:
    await s.run(code)
    await s.names["simple_backfill"]()
    assert s.took() == list(range(1, 901))
    assert s.pauses == [2.0]
    with (s.folder / "messages.csv").open(newline="") as file:
        assert [int(row["id"]) for row in csv.DictReader(file)] == list(range(1, 901))
    assert s.checkpoint["last_message_id"] == s.checkpoint["total_processed"] == 900


async def level_1_incremental(s: Surroundings, code: str) -> None:
    await s.run(code)
    await s.names["simple_incremental"]()
    assert s.took() == []
    s.chat.append(50)
    await s.names["simple_incremental"]()
    assert s.took() == list(range(901, 951))


async def level_1_cron(s: Surroundings, code: str) -> None:
    """Both lines of the crontab, with the guide's own functions as programs."""
    codes = [
        code for heading, _, code in blocks() if heading.startswith(("Historical Data Extraction", "Incremental "))
    ]
    around = "from datetime import datetime\ndef save_to_csv(batch, path, append):\n    print(len(batch))\n"
    around += "process_messages = lambda frame: None\n"
    for name, function, block in (
        ("backfill", "simple_backfill", codes[0]),
        ("incremental", "simple_incremental", codes[1]),
    ):
        block = block.replace("from tgdata", "from producer.tgdata")
        imports = "" if "import asyncio" in block else "import asyncio\nfrom producer.tgdata import TgData\n"
        (s.folder / f"{name}.py").write_text(f"{imports}{around}{block}\nasyncio.run({function}())\n")
    s.chat.append(1)
    said = []
    for line in code.splitlines():
        if line and not line.startswith("#"):
            command = shlex.split(line)[5:]
            said.append(await _output(command, s.folder))
    assert "1 messages at" in said[0]
    assert said[1] == ""
    assert s.checkpoint["last_message_id"] == 951


async def _output(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def level_2_backfill(s: Surroundings, code: str) -> None:
    """Runs when its schema is there, which the guide shows two blocks further on."""
    await s.run(code)


async def level_2_incremental(s: Surroundings, code: str) -> None:
    await s.run(code)


async def level_2_schema(s: Surroundings, code: str) -> None:
    etl = s.names["DatabaseETL"]

    async def load_to_warehouse(self: Any, batch: pd.DataFrame) -> None:
        s.process_batch(batch)

    async def transform(self: Any, batch: pd.DataFrame) -> pd.DataFrame:
        return batch

    etl.transform, etl.load_to_warehouse, etl.process_messages = transform, load_to_warehouse, load_to_warehouse
    etl.report_progress = lambda self, current, total, rate: None
    etl.incremental_with_db = s.names["incremental_with_db"]
    run = etl()
    await run.db.execute(code)
    await run.backfill_with_db_checkpoint(GROUP)
    s.chat.append(30)
    await run.incremental_with_db(GROUP)
    s.chat.append(20)
    await run.backfill_with_db_checkpoint(GROUP)
    assert s.took() == list(range(1, 1002))
    row = await run.db.fetchone("SELECT * FROM etl_checkpoints")
    assert (row["group_id"], row["last_message_id"], row["total_processed"]) == (GROUP, 1001, 971)
    await run.db.close()


async def level_3(s: Surroundings, code: str) -> None:
    await s.run(code)
    etl = s.names["DistributedETL"]
    told: list[int] = []

    async def get_backoff_time(self: Any) -> float:
        await self.redis.set("rate_limit:tokens", 100)
        return 0.01

    async def publish_progress(self: Any, group_id: int, current: int, total: int | None, rate: float) -> None:
        told.append(current)

    async def process_batch(self: Any, batch: pd.DataFrame) -> None:
        s.process_batch(batch)

    etl.get_backoff_time, etl.publish_progress, etl.process_batch = get_backoff_time, publish_progress, process_batch
    for worker in (etl(), etl()):
        await worker.distributed_backfill(GROUP)
        kept = await worker.redis.hgetall(f"etl:checkpoint:{GROUP}")
        assert (kept["last_id"], kept["worker"]) == (str(s.chat.ids[-1]), "1")
        await worker.redis.aclose()
        s.chat.append(10)
    assert s.took() == list(range(1, 1012))
    assert told == [1001, 10]


async def pattern_1(s: Surroundings, code: str) -> None:
    """Two floods: the guide's delay doubles with each, and so does the library's own; then both shrink."""
    await s.run(code)
    before = s.chat.ids[-1]
    await TgData().get_messages(GROUP, checkpoint_file="checkpoint.json")
    s.chat.append(6000)
    s.pauses.clear()
    asked = s.server.script.seen["GetHistoryRequest"]
    s.server.script.faults += [Fault("flood", asked + 18, value=1), Fault("flood", asked + 29, value=1)]
    await s.names["adaptive_extraction"](GROUP)
    frames = list(s.frames)
    assert s.took() == list(range(before + 1, before + 6001))
    assert [round(delay, 3) for delay in s.delays] == [1.0, 2.0, 4.0, 3.6, 3.24, 2.916]
    assert [frame.metadata["rate_limit_waits"] for frame in frames] == [0, 1, 1, 0, 0, 0]
    assert [round(frame.metadata["delay"], 3) for frame in frames] == [round(delay, 3) for delay in s.delays]
    assert [round(pause, 3) for pause in s.pauses] == [1.0, 2.0, 4.0, 3.6, 3.24]


async def pattern_2(s: Surroundings, code: str) -> None:
    await s.run(code)
    new = s.chat.append(700)
    async with AIOKafkaProducer(bootstrap_servers=s.kafka_bootstrap, acks="all") as s.kafka:
        await s.names["incremental_large_volume"](GROUP)
    assert s.took() == new
    consumer = AIOKafkaConsumer(s.topic, bootstrap_servers=s.kafka_bootstrap, auto_offset_reset="earliest")
    found: list[int] = []
    async with consumer, asyncio.timeout(60):
        while len(found) < len(new):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [json.loads(record.value)["id"] for record in records]
    assert found == new


async def pattern_3(s: Surroundings, code: str) -> None:
    new = s.chat.append(60)
    await s.run(code)
    assert s.took() == new
    monitor = s.names["monitor"]
    assert monitor.last_update > 0  # it has printed


async def best_practice_1(s: Surroundings, code: str) -> None:
    new = s.chat.append(3)
    await s.run(code)
    assert s.names["messages"]["id"].tolist() == new


async def best_practice_2(s: Surroundings, code: str) -> None:
    await s.run(code)
    assert s.names["messages"]["id"].tolist() == s.chat.ids
    await s.run(code)
    assert s.names["messages"].empty


async def best_practice_3(s: Surroundings, code: str) -> None:
    await s.run(code)
    assert s.took() == s.chat.ids
    working = s.names["process_batch"]
    s.names["process_batch"] = lambda batch: batch.no_such_thing
    await s.run(code)  # logs the error and ends
    s.names["process_batch"] = working


async def best_practice_4(s: Surroundings, code: str) -> None:
    await s.run(code)
    assert s.took() == s.chat.ids
    assert (s.gauges["etl.progress"], s.gauges["etl.completion"]) == (len(s.chat.ids), 100.0)


async def migration_path(s: Surroundings, code: str) -> None:
    """Three pieces, each with an arrow to the next."""
    pieces = code.split("\N{DOWNWARDS ARROW}")
    assert len(pieces) == 3
    for piece in pieces:
        await s.run("\n".join(line.strip() for line in piece.splitlines()))


#: One step for each block of the guide, under its heading.
STEPS: list[tuple[str, str, Step]] = [
    ("get_all_messages()", "python", signature_of_get_all_messages),
    ("get_messages() with after_id", "python", signature_of_get_messages),
    ("Checkpoint File Format", "json", checkpoint_format),
    ("Historical Data Extraction", "python", level_1_backfill),
    ("Incremental Data Extraction", "python", level_1_incremental),
    ("Incremental Data Extraction", "bash", level_1_cron),
    ("Historical Data Extraction with Database", "python", level_2_backfill),
    ("Incremental with Database", "python", level_2_incremental),
    ("Incremental with Database", "sql", level_2_schema),
    ("Distributed Historical Extraction", "python", level_3),
    ("Pattern 1: Adaptive Rate Limiting", "python", pattern_1),
    ("Pattern 2: Batch Mode for Incremental", "python", pattern_2),
    ("Pattern 3: Progress Monitoring", "python", pattern_3),
    ("1. Start Simple", "python", best_practice_1),
    ("2. Add Complexity Gradually", "python", best_practice_2),
    ("3. Handle Failures", "python", best_practice_3),
    ("4. Monitor Everything", "python", best_practice_4),
    ("Migration Path", "python", migration_path),
]


@pytest.mark.timeout(200)
async def test_the_guide_runs_whole_and_in_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    postgres_dsn: str,
    redis_url: str,
    kafka_bootstrap: str,
    unique: str,
) -> None:
    found = blocks()
    assert [(heading, language) for heading, language, _ in found] == [step[:2] for step in STEPS]
    pauses: list[float] = []

    async def pause(self: Reading, seconds: float) -> None:
        pauses.append(seconds)  # the guide's are up to 30 s long

    monkeypatch.setattr(Reading, "pause", pause)
    monkeypatch.chdir(tmp_path)
    for name in ("API_ID", "API_HASH", "SESSION"):
        monkeypatch.delenv(f"TELEGRAM_{name}", raising=False)
    monkeypatch.setenv("TELEGRAM_MIN_DELAY_S", "0")
    monkeypatch.setenv("DATABASE_URL", postgres_dsn)
    monkeypatch.delenv("WORKER_ID", raising=False)
    chat = made_chat(GROUP, 900, username="demo")
    async with Server(World([chat])) as server:
        _log_in(server, tmp_path)
        surroundings = Surroundings(chat, server, tmp_path, redis_url, kafka_bootstrap, unique, pauses)
        surroundings.names["tg"] = TgData()
        for (_, _, code), (heading, language, step) in zip(found, STEPS, strict=True):
            try:
                await step(surroundings, code)
            except BaseException as error:
                error.add_note(f"in the guide, {heading!r} ({language})")
                raise
        assert server.open_connections == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def _log_in(server: Server, folder: Path) -> None:
    """What the tgdata package needs: its config.ini, and Telethon's session file."""
    server.session(KEY)
    session = SQLiteSession(str(folder / "account"))
    session.set_dc(2, "127.0.0.1", server.port)
    session.auth_key = AuthKey(KEY)
    session.save()
    session.close()
    (folder / "config.ini").write_text("[Telegram]\napi_id = 1\napi_hash = hash\nphone = +1\nsession_file = account\n")
