"""Owns the independent look at a topic: a plain consumer (librdkafka, not the product's client) that counts keys."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fastavro
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition


@dataclass
class TopicAudit:
    """All records of a topic up to now, by decoded key; `catch_up` may be called again and again.

    `prefix` is the length of what stands before the Avro datum (5 with a registry).
    """

    bootstrap: str
    topic: str
    key_schema: Any
    prefix: int = 0
    isolation: str = "read_uncommitted"
    keys: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    records: int = 0
    first_append_s: float | None = None  # creation time of the first record of the last `catch_up`, since 1970

    def __post_init__(self) -> None:
        self._schema = fastavro.parse_schema(self.key_schema)
        self._consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"audit-{time.time_ns()}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": self.isolation,
                "fetch.wait.max.ms": 20,
                "queued.min.messages": 200_000,
            }
        )
        self._partitions: dict[int, int] = {}

    def close(self) -> None:
        self._consumer.close()

    def end(self) -> int:
        """How many records the topic holds (and markers of transactions); 0 where it is not there."""
        return sum(self.ends().values())

    def ends(self) -> dict[int, int]:
        """The end of each partition, as far as the isolation lets look."""
        topic = self._consumer.list_topics(timeout=10).topics.get(self.topic)
        return {partition: self._end_of(partition) for partition in (topic.partitions if topic else ())}

    def has_read(self, ends: Mapping[int, int]) -> bool:
        """Whether everything before `ends` has been read."""
        return all(self._partitions.get(partition, 0) >= end for partition, end in ends.items())

    def _end_of(self, partition: int) -> int:
        try:
            end: int = self._consumer.get_watermark_offsets(self._at(partition), timeout=10)[1]
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART):
                return 0  # the topic is being made
            raise
        return end

    def catch_up(self, deadline_s: float = 120.0) -> None:
        """Reads to what is the end when this is called."""
        metadata = self._consumer.list_topics(timeout=10).topics.get(self.topic)
        if metadata is None:
            return
        ends = {partition: self._end_of(partition) for partition in metadata.partitions}
        for partition in ends:
            self._partitions.setdefault(partition, 0)
        self._consumer.assign([TopicPartition(self.topic, p, o) for p, o in self._partitions.items()])
        until = time.monotonic() + deadline_s
        self.first_append_s = None
        while self._behind(ends):
            assert time.monotonic() < until, f"the topic {self.topic} was not read to its end in {deadline_s} s"
            for message in self._consumer.consume(20_000, timeout=0.2):
                assert message.error() is None, message.error()
                partition, offset, key = message.partition(), message.offset(), message.key()
                assert partition is not None and offset is not None and key is not None
                self._partitions[partition] = offset + 1
                self.records += 1
                created_s = message.timestamp()[1] / 1000
                self.first_append_s = min(self.first_append_s or created_s, created_s)
                fields: Any = fastavro.schemaless_reader(io.BytesIO(key[self.prefix :]), self._schema, None)
                self.keys[tuple(fields.values())] += 1
            for place in self._consumer.position(list(map(self._at, ends))):
                if place.offset >= 0:  # also past what is no record: markers of transactions
                    self._partitions[place.partition] = max(self._partitions[place.partition], place.offset)

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self.topic, partition)

    def _behind(self, ends: dict[int, int]) -> bool:
        return any(self._partitions[partition] < end for partition, end in ends.items())

    @property
    def duplicates(self) -> int:
        return self.records - len(self.keys)
