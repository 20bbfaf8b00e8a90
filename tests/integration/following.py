"""Owns a followed table of the tests: its configuration, what waits for it, and updates while its snapshot is taken.

`python -m benchmarks.updates` does the same at full size.
"""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
from adbc_driver_postgresql import dbapi
from confluent_kafka import Consumer, TopicPartition

from tests.audit import TopicAudit
from tests.faults.killing import start, write_config

ID = {"type": "record", "name": "k", "fields": [{"name": "id", "type": "long"}]}
ROWS_AN_UPDATE = 300


def configured(folder: Path, url: str, kafka: str, topic: str, **settings: Any) -> Path:
    one = {"source": "shop", "table": "events", "topic": topic, "partitions": 2, **settings}
    return write_config(
        folder,
        {
            "app": topic,
            "kafka": {"bootstrap_servers": kafka},
            "checkpoints": {"type": "file", "path": str(folder / "state")},
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": url}},
            "streams": [one],
        },
    )


def reaches(done: Callable[[], bool], timeout_s: float = 60) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if done():
            return True
        time.sleep(0.05)
    return False


VERSIONED = {
    "type": "record",
    "name": "v",
    "fields": [{"name": n, "type": t} for n, t in (("id", "long"), ("n", "int"), ("changed", "long"))],
}


def last_versions(bootstrap: str, topic: str) -> dict[int, int]:
    """What the last record of each key says, in the order of its partition; AssertionError where one is older than
    the record before it."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "enable.partition.eof": True})
    parts = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, part, 0) for part in parts])
    last: dict[int, int] = {}
    ended = 0
    while ended < len(parts):
        for message in consumer.consume(10_000, timeout=1):
            if message.error() is not None:
                ended += 1
                continue
            row: Any = fastavro.schemaless_reader(io.BytesIO(message.value() or b""), VERSIONED, None)
            assert last.get(row["id"], -1) <= row["n"], "an older version came after a newer one"
            last[row["id"]] = row["n"]
    consumer.close()
    return last


@dataclass(frozen=True)
class Updated:
    """`updates` of rows were made in `update_s` seconds; the topic had the last one `after_s` seconds later."""

    updates: int
    records: int
    update_s: float
    after_s: float


def update_during_snapshot(
    folder: Path, dsn: str, bootstrap: str, topic: str, *, rows: int, updates: int, patience_s: float = 90
) -> Updated:
    """Updates rows of a new table at random from its first record on. AssertionError where an older version of a row
    comes after a newer one, or the last record of a key is not the row's final state."""
    with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("create table events (id bigint primary key, n int not null, changed timestamptz not null)")
        cursor.execute(
            "insert into events select g, 0, now() - interval '1 hour' + g * interval '1 ms' "
            f"from generate_series(1, {rows}) g"
        )
        cursor.execute("create index on events (changed, id)")
        cursor.execute("analyze events")
        config = configured(
            folder, dsn, bootstrap, topic, mode="snapshot_then_tail", order_by=["changed"], delay_s=0.5,
            page_size=500, max_parallel=4, poll_interval_s=0.1, max_rows_per_s=40_000,
        )  # fmt: skip
        audit = TopicAudit(bootstrap, topic, ID)
        process = start(config)
        try:
            assert reaches(lambda: audit.end() > 0)
            began = time.monotonic()
            for turn in range(-(-updates // ROWS_AN_UPDATE)):
                cursor.execute(
                    "update events set n = n + 1, changed = clock_timestamp() where id in "
                    f"(select 1 + (r + g * {rows // ROWS_AN_UPDATE}) % {rows} "
                    f"from (select (random() * {rows})::bigint) s(r), generate_series(1, {ROWS_AN_UPDATE}) g)"
                )
                if turn == 0:
                    assert audit.end() < rows, "the snapshot was over before the first update"
            ended = time.monotonic()
            cursor.execute("select id, n from events")
            final = dict(cursor.fetchall())
            assert reaches(lambda: last_versions(bootstrap, topic) == final, patience_s)
            assert process.poll() is None
            return Updated(sum(final.values()), audit.end(), ended - began, time.monotonic() - ended)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            audit.close()
            cursor.execute("drop table events")
