"""Shows a chat's history going to Kafka as Avro: ``python -m tests.mtproto.demo [--messages N]``.

A loopback Telegram with made-up messages, a real Kafka (``KAFKA_BOOTSTRAP`` names one to use, else one is started) and
the real command. It reads the topic back, compares the ids, ends by itself and leaves nothing running.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import yaml
from aiokafka import AIOKafkaConsumer

from producer.embedded import EmbeddedKafka
from producer.sources.telegram import record
from tests.mtproto.running import process

FLOODS = ("--fault", "flood@60/400:1")  #: so that the waits Telegram orders can be seen too
READ_BACK_S = 120.0


def say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def broker() -> Iterator[str]:
    if given := os.environ.get("KAFKA_BOOTSTRAP"):
        yield given
        return
    with EmbeddedKafka() as kafka:
        say(f"Kafka of our own at {kafka.bootstrap}")
        yield str(kafka.bootstrap)


def configure(folder: Path, bootstrap: str, topic: str, session: str) -> Path:
    """The configuration, with the rate limit off: the loopback server has its own."""
    account = {"type": "telegram", "api_id": 1, "api_hash": "none", "session": session, "min_delay_s": 0}
    document = {
        "app": topic,
        "kafka": {"bootstrap_servers": bootstrap},
        "checkpoints": {"type": "file", "path": str(folder / "state")},
        "http": {"port": 0},
        "sources": {"account": account},
        "streams": [{"source": "account", "chat": "@demo", "topic": topic, "partitions": 4, "max_parallel": 1}],
    }
    path = folder / "telegram.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


async def read_back(bootstrap: str, topic: str, wanted: int) -> tuple[set[int], int, dict[str, Any]]:
    """The distinct ids on the topic, the number of its records, and the last message."""
    key = fastavro.parse_schema(record.avro_schema(record.KEY, record="MessageKey"))
    value = fastavro.parse_schema(record.avro_schema())
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    ids: set[int] = set()
    records, newest = 0, b""
    try:
        async with asyncio.timeout(READ_BACK_S):
            while len(ids) < wanted:
                for found in (await consumer.getmany(timeout_ms=500)).values():
                    for raw in found:
                        number: Any = fastavro.schemaless_reader(io.BytesIO(raw.key), key)
                        ids.add(number["id"])
                        records += 1
                        if number["id"] == wanted:
                            newest = raw.value
    finally:
        await consumer.stop()
    message: Any = fastavro.schemaless_reader(io.BytesIO(newest), value)
    return ids, records, message


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mtproto.demo", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    wanted: int = parser.parse_args().messages
    topic = f"telegram.demo-{uuid.uuid4().hex[:6]}"
    with (
        tempfile.TemporaryDirectory() as name,
        broker() as bootstrap,
        process("--messages", str(wanted), *FLOODS) as session,
    ):
        say(f"A chat of {wanted:,} messages on a loopback Telegram, with a flood wait every 400 requests")
        config = configure(Path(name), bootstrap, topic, session)
        command = [sys.executable, "-m", "producer", "run", str(config), "--once", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            return done.returncode
        summary = json.loads(done.stdout)
        say(f"{summary['acked']:,} messages acknowledged in {summary['seconds']:.1f} s")
        ids, records, message = asyncio.run(read_back(bootstrap, topic, wanted))
        say(f"Read back from {topic}: {records:,} records, {len(ids):,} ids; the newest message:")
        say(json.dumps({k: v for k, v in message.items() if v is not None}, default=str, ensure_ascii=False))
        if ids != set(range(1, wanted + 1)):
            say("the ids are not those of the chat")
            return 1
        say("every message of the chat is there")
        return 0


if __name__ == "__main__":
    sys.exit(main())
