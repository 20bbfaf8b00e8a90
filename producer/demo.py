"""Owns the demo: a table of realistic rows, streamed to a real Kafka as Avro, read back, and compared.

It sets up everything it needs in a folder of its own, ends by itself, and leaves nothing running.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from producer import proof
from producer.config import Config, load_config
from producer.errors import ProducerError

TABLE = "orders"
PARTITIONS = 4
_SEED = 20_240_229
_CHUNK_ROWS = 50_000
_PARTS = 4  # of the table, for the proof
_CREATE = f"""
CREATE TABLE {TABLE} (
    id INTEGER PRIMARY KEY,
    customer TEXT NOT NULL,
    email TEXT,
    amount DECIMAL(12, 2) NOT NULL,
    quantity INTEGER NOT NULL,
    weight_kg REAL,
    paid BOOLEAN NOT NULL,
    created_at TIMESTAMP NOT NULL,
    note TEXT
)
"""
_FIRST_NAMES = ("Ada", "Zoë", "Søren", "Łukasz", "Наталия", "Дмитрий", "Ελένη", "美咲", "小明", "지우", "فاطمة", "नेहा")
_LAST_NAMES = (
    "Lovelace",
    "O'Neill",
    "Müller",
    "Kovačević",
    "Иванова",
    "Παπαδοπούλου",
    "佐藤",
    "王",
    "김",
    "de la Cruz",
)
_NOTES = (None, None, None, "", "gift 🎁", "leave at the door", "позвонить заранее", 'says "thanks"', "tab\there")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found; `equal` is the proof."""

    table: proof.Digest
    topic: proof.Digest
    stream_s: float

    @property
    def equal(self) -> bool:
        return (
            self.table.count == len(self.table.keys) == len(self.topic.keys)
            and self.table.keys == self.topic.keys
            and self.topic.count == self.table.count
            and self.table.checksum == self.topic.checksum
        )


def demo_rows(rows: int) -> Iterator[list[tuple[Any, ...]]]:
    """Chunks of the table's rows, the same ones every time; about one id in ten is left out."""
    random = np.random.default_rng(_SEED)
    customers = [f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES]
    begin = datetime.fromisoformat("2024-01-01")  # without zone, as the column's type is
    last_id = 0
    for start in range(0, rows, _CHUNK_ROWS):
        n = min(_CHUNK_ROWS, rows - start)
        ids = last_id + np.cumsum(1 + (random.random(n) < 0.1))
        last_id = int(ids[-1])
        who = random.integers(0, len(customers), n).tolist()
        cents = random.integers(-5_000, 10_000_000, n).tolist()
        weight = np.round(random.gamma(2.0, 1.5, n), 3).tolist()
        unweighed = (random.random(n) < 0.15).tolist()
        micros = random.integers(0, 30_000_000, n).tolist()
        yield list(
            zip(
                ids.tolist(),
                [customers[i] for i in who],
                [None if i % 5 == 0 else f"customer{i}.{c}@example.com" for i, c in zip(who, cents, strict=True)],
                [f"{'-' if c < 0 else ''}{abs(c) // 100}.{abs(c) % 100:02d}" for c in cents],
                random.integers(1, 40, n).tolist(),
                [None if skip else w for skip, w in zip(unweighed, weight, strict=True)],
                (random.random(n) < 0.8).tolist(),
                [
                    str(begin + timedelta(seconds=start + row, microseconds=m))
                    for row, m in zip(range(n), micros, strict=True)
                ],
                [_NOTES[i] for i in random.integers(0, len(_NOTES), n).tolist()],
                strict=True,
            )
        )


def fill(database: Path, rows: int, given_up: threading.Event) -> int:
    """Makes the table in one transaction; its largest id. Ends early when `given_up` is set."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")  # nothing to go back to: the file is new
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute(_CREATE)
        for chunk in demo_rows(rows):
            if given_up.is_set():
                return 0
            connection.executemany(f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", chunk)
        connection.execute("COMMIT")
        return int(connection.execute(f"SELECT max(id) FROM {TABLE}").fetchone()[0] or 0)
    finally:
        connection.close()


def canonical(row: proof.Row) -> tuple[Any, ...]:
    """A row's values in forms that sqlite3 and Avro have in common: cents, 0 or 1, and the time as text."""
    return (
        row["customer"],
        row["email"],
        round(row["amount"] * 100),
        row["quantity"],
        row["weight_kg"],
        int(row["paid"]),
        str(row["created_at"]),
        row["note"],
    )


async def run_demo(rows: int, *, keep: bool, say: Say) -> Outcome:
    """The whole demo; everything it made is gone afterwards unless `keep`."""
    folder = Path(tempfile.mkdtemp(prefix="producer-demo-"))
    given_up = threading.Event()
    try:
        filling = asyncio.create_task(_fill(folder, rows, given_up, say))
        try:
            async with _broker(folder, keep, say) as bootstrap:
                last_id = await filling
                config = _configure(folder, bootstrap)
                try:
                    stream_s = await _stream(config)
                    return await _prove(config, folder, last_id, stream_s, say)
                finally:
                    if not keep:
                        await _delete_topics(config)
        finally:
            given_up.set()
            await asyncio.wait({filling})
    finally:
        if keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def _fill(folder: Path, rows: int, given_up: threading.Event, say: Say) -> int:
    started = time.perf_counter()
    database = folder / "shop.db"
    last_id = await asyncio.to_thread(fill, database, rows, given_up)
    if not given_up.is_set():
        size_mb = database.stat().st_size / 1e6
        say(f"table {TABLE}: {rows:,} rows ({size_mb:,.0f} MB of SQLite) in {time.perf_counter() - started:.1f} s")
    return last_id


@asynccontextmanager
async def _broker(folder: Path, keep: bool, say: Say) -> AsyncIterator[str]:
    given = os.environ.get("KAFKA_BOOTSTRAP")
    if given:
        say(f"Kafka: {given}, as KAFKA_BOOTSTRAP says")
        yield given
        return
    from producer.embedded import KAFKA_VERSION, embedded_kafka

    started = time.perf_counter()
    data = folder / "kafka" if keep else None
    if data is not None:
        data.mkdir()
    async with embedded_kafka(data, note=say) as broker:
        say(f"Kafka {KAFKA_VERSION} of our own at {broker.bootstrap} in {time.perf_counter() - started:.1f} s")
        yield broker.bootstrap


def _configure(folder: Path, bootstrap: str) -> Config:
    """Writes the configuration that a user would write, and reads it."""
    app = f"demo-{secrets.token_hex(4)}"
    path = folder / "demo.yaml"
    path.write_text(
        f"""\
app: {app}
kafka: {{bootstrap_servers: "{bootstrap}"}}
checkpoints: {{type: file, path: ./state}}
http: {{port: 0}}
sources:
  shop: {{type: sql, url: "sqlite:///{folder / "shop.db"}"}}
streams:
  - source: shop
    table: {TABLE}
    topic: {app}.{TABLE}
    partitions: {PARTITIONS}
""",
        encoding="utf-8",
    )
    return load_config(path)


async def _stream(config: Config) -> float:
    """Runs the stream until it has caught up: seconds from the first page to the last acknowledgement."""
    from producer import progress
    from producer.metrics import Metrics
    from producer.service import Service

    service = Service(config, metrics=Metrics(), run_id=secrets.token_hex(8))
    terminal = sys.stderr.isatty()

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    async with progress.showing(service, terminal=terminal, say=say):
        (summary,) = await service.run(once=True, stop=asyncio.Event())
    if summary.state != "complete":
        raise ProducerError(f"the stream did not complete: {summary.error or summary.state}")
    return summary.seconds


async def _prove(config: Config, folder: Path, last_id: int, stream_s: float, say: Say) -> Outcome:
    from producer.kafka import client_options

    topic = config.streams[0].topic
    options = client_options(config.kafka)
    say("proof: reading the topic back, decoding every record, and reading the table again")
    started = time.perf_counter()
    schemas = await proof.read_schemas(options, config.state_topic, topic)
    bounds = [last_id * part // _PARTS for part in range(_PARTS + 1)]
    jobs: list[tuple[str, Callable[..., proof.Digest], tuple[Any, ...]]] = [
        ("topic", proof.digest_partition, (options, topic, partition, schemas, canonical))
        for partition in range(PARTITIONS)
    ]
    jobs += [
        ("table", proof.digest_table, (folder / "shop.db", TABLE, after, up_to, canonical))
        for after, up_to in itertools.pairwise(bounds)
    ]
    found = await proof.add_up(jobs, processes=max(1, min(len(jobs), os.cpu_count() or 1)))
    say(f"proof: done in {time.perf_counter() - started:.1f} s")
    return Outcome(found["table"], found["topic"], stream_s)


async def _delete_topics(config: Config) -> None:
    """A broker that was given is left as it was found."""
    if "KAFKA_BOOTSTRAP" in os.environ:
        from producer.kafka import admin

        async with admin(config.kafka) as client:
            await client.delete_topics([config.streams[0].topic, config.state_topic])


def report(outcome: Outcome) -> str:
    """The proof, for people."""
    table, topic = outcome.table, outcome.topic

    def both(title: str, left: str, right: str) -> str:
        return f"  {title:<16}{left:>22}{right:>22}  {'equal' if left == right else 'DIFFERENT'}"

    rate = f"{topic.count / outcome.stream_s:,.0f}" if outcome.stream_s > 0 else "-"
    return "\n".join(
        [
            f"  {'':<16}{'table':>22}{'topic':>22}",
            both("rows / records", f"{table.count:,}", f"{topic.count:,}"),
            both("distinct keys", f"{len(table.keys):,}", f"{len(topic.keys):,}"),
            both("checksum", f"{table.checksum:016x}", f"{topic.checksum:016x}"),
            f"  streamed in {outcome.stream_s:.2f} s: {rate} rows/s",
            "PROOF: every row is on the topic once, with the same values"
            if outcome.equal
            else "PROOF FAILED: table and topic differ",
        ]
    )
