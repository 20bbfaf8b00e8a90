"""Owns the limit of a C client: librdkafka producing the very bytes that we produced, nothing read or encoded.

Keys, values, partitions and headers lie ready in memory as Python objects before the clock starts. Without `reports` no
delivery report is asked for a record, only for the whole, which is in its favour: nobody could keep a checkpoint so.
With them each record's is, as a checkpoint needs it. Its memory is that of the ready rows and is not reported.
zstd's level is librdkafka's default, 3, unless one is given; ours is 1.
"""

from __future__ import annotations

import gc
import json
import pickle
import resource
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.measure import Sample, Use, landed, python, run, sample
from benchmarks.peers import ours
from benchmarks.servers import Servers
from benchmarks.tables import Table

Headers = list[tuple[str, str | bytes | None]]
Row = tuple[bytes, bytes, int, Headers]


def measure(
    servers: Servers, table: Table, *, headers: bool = True, reports: bool = False, level: int | None = None
) -> Sample:
    path = servers.folder / f"{table.name}-{table.rows}-{'headers' if headers else 'plain'}.rows"
    if not path.exists():
        with servers.topics() as (topic,):
            ours.measure(servers, table, headers=headers, topic=topic)
            _save(servers.bootstrap, topic, table.rows, path)
    with servers.topics() as (topic,):
        how = "reports" if reports else "silent"
        arguments = (str(path), topic, servers.bootstrap, how, *([] if level is None else [str(level)]))
        used = run(python("benchmarks.peers.librdkafka", *arguments))
        told = json.loads(used.stdout)
        produced = Use(told["started_at"], used.ended_at, told["cpu_s"], 0, "")
        found = sample(produced, landed(servers.bootstrap, [topic]), table.rows)
    return Sample(found.rows, found.seconds, found.mbytes_per_s, found.cpu_s, None)


def _save(bootstrap: str, topic: str, rows: int, path: Path) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-save"})
    partitions = consumer.list_topics(topic, 30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    left = rows
    with open(path, "wb") as file:
        while left:
            got = consumer.consume(min(left, 20_000), 30)
            if not got:
                raise TimeoutError(f"{left:,} records of {topic} are missing")
            pickle.dump([(m.key(), m.value(), m.partition(), m.headers() or []) for m in got], file)
            left -= len(got)
    consumer.close()


def produce(path: str, topic: str, bootstrap: str, how: str, level: str = "-1") -> None:
    acknowledged = 0

    def reported(error: object, message: object) -> None:
        nonlocal acknowledged
        acknowledged += error is None

    report = reported if how == "reports" else None
    rows: list[Row] = []
    with open(path, "rb") as file:
        while file.peek(1):
            rows += pickle.load(file)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "compression.type": "zstd",
            "compression.level": int(level),
            "linger.ms": 20,
            "batch.size": 2**20,
            "batch.num.messages": 100_000,
            "queue.buffering.max.messages": 500_000,
            "queue.buffering.max.kbytes": 256 * 1024,
        }
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    started_at = time.time()
    gc.freeze()
    for number, (key, value, partition, headers) in enumerate(rows):
        while True:
            try:
                producer.produce(topic, value, key, partition, report, headers=headers)
                break
            except BufferError:
                producer.poll(0.01)
        if not number % 5000:
            producer.poll(0)
    if producer.flush(120):
        sys.exit("not everything was acknowledged")
    if report is not None and acknowledged != len(rows):
        sys.exit(f"{acknowledged:,} records were reported instead of {len(rows):,}")
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"started_at": started_at, "cpu_s": cpu_s}))


if __name__ == "__main__":
    produce(*sys.argv[1:])
