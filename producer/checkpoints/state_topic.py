"""Owns reading the state topic: all committed records up to its end, the newest of each key, as of the call.

The end is the high watermark and not what a read_committed consumer is told (the last stable offset): behind another
runner's open transaction there may be commits that count. Transaction markers have offsets, and count too.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as ke
from aiokafka.protocol.offset import OffsetRequest

from producer.config import KafkaConfig
from producer.kafka import client_options, connect, give_up

_CLOSE_TIMEOUT_S = 2.0
_LEADER_WAIT_S = 0.1
_NO_REPLICA = -1
_READ_UNCOMMITTED = 0
_LATEST = -1


@dataclass(slots=True)
class StreamRecords:
    """The newest values of one stream's keys, not parsed yet."""

    plan: bytes | None = None
    paused: bytes | None = None
    splits: dict[str, bytes] = field(default_factory=dict)


def pause_key(stream: str) -> bytes:
    """The key of the record that says that a stream is paused."""
    return json.dumps({"stream": stream, "paused": True}, separators=(",", ":")).encode()


def record_key(stream: str, split: str | None = None) -> bytes:
    """The key of a stream's plan, or of one of its splits."""
    key = {"stream": stream} if split is None else {"stream": stream, "split": split}
    return json.dumps(key, separators=(",", ":")).encode()


class StateTopic:
    """The topic's partitions, read on from where the last call ended. aiokafka's errors are not translated here."""

    def __init__(self, config: KafkaConfig, topic: str, partitions: int) -> None:
        self._config = config
        self._all = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._consumer: AIOKafkaConsumer | None = None
        self._streams: dict[str, StreamRecords] = {}
        self._turn = asyncio.Lock()

    async def read(self, *partitions: int) -> dict[str, StreamRecords]:
        """Every stream's records, as of now in the given partitions or in all; the caller may not change them.

        TimeoutError after ``request_timeout_s``: an open transaction of a runner that hangs is waited for.
        """
        wanted = [self._all[partition] for partition in partitions] or self._all
        async with self._turn:
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    await self._catch_up(wanted)
            except BaseException:
                await self._drop()  # in the middle of a read: the next one begins again
                raise
            return self._streams

    async def close(self) -> None:
        async with self._turn:
            await self._drop()

    async def _drop(self) -> None:
        consumer, self._consumer, self._streams = self._consumer, None, {}
        if consumer is not None:
            await give_up(consumer.stop, _CLOSE_TIMEOUT_S)

    async def _catch_up(self, wanted: Sequence[TopicPartition]) -> None:
        consumer = self._consumer
        if consumer is None:
            consumer = AIOKafkaConsumer(
                **client_options(self._config),
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                fetch_max_wait_ms=50,
            )
            await connect(consumer, consumer.stop, self._config)
            self._consumer = consumer
            consumer.assign(self._all)
            consumer.pause(*self._all)
        consumer.resume(*wanted)
        for partition, end in (await self._ends(consumer, wanted)).items():
            while await consumer.position(partition) < end:
                for records in (await consumer.getmany(*wanted, timeout_ms=100)).values():
                    for record in records:
                        self._put(record.key, record.value)
        consumer.pause(*wanted)  # nothing is fetched until the next call

    async def _ends(self, consumer: AIOKafkaConsumer, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        while True:
            try:
                return await self._ends_now(consumer, wanted)
            except (ke.NotLeaderForPartitionError, ke.LeaderNotAvailableError, ke.UnknownTopicOrPartitionError):
                # The topic has just been made, or has moved: the caller's deadline decides for how long that is well.
                await asyncio.sleep(_LEADER_WAIT_S)
                await consumer._client.force_metadata_update()

    async def _ends_now(
        self, consumer: AIOKafkaConsumer, wanted: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        client = consumer._client
        by_leader: defaultdict[int, list[TopicPartition]] = defaultdict(list)
        for partition in wanted:
            while (leader := client.cluster.leader_for_partition(partition)) in (None, -1):
                await client.force_metadata_update()
            by_leader[leader].append(partition)
        ends: dict[TopicPartition, int] = {}
        for leader, partitions in by_leader.items():
            topics = [(partitions[0].topic, [(partition.partition, _LATEST) for partition in partitions])]
            response = await client.send(leader, OffsetRequest(_NO_REPLICA, _READ_UNCOMMITTED, topics))
            ((topic, answers),) = response.topics
            for number, code, *_, offset in answers:
                if code:
                    raise ke.for_code(code)()
                ends[TopicPartition(topic, number)] = int(offset)
        return ends

    def _put(self, key: bytes | None, value: bytes | None) -> None:
        match _parsed(key):
            case {"stream": str(stream), "split": str(split)}:
                splits = self._streams.setdefault(stream, StreamRecords()).splits
                if value is None:
                    splits.pop(split, None)
                else:
                    splits[split] = value
            case {"stream": str(stream), "paused": True}:
                self._streams.setdefault(stream, StreamRecords()).paused = value
            case {"stream": str(stream)}:
                self._streams.setdefault(stream, StreamRecords()).plan = value
            case _:  # a schema's record, or somebody else's
                return


def _parsed(key: bytes | None) -> Any:
    try:
        return json.loads(key or b"null")
    except ValueError:
        return None
