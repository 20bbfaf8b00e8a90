"""Owns a process's membership in the application's consumer group, and so which work is its own.

The group is over the state topic: whoever is assigned a partition of it owns the units of that number. Nothing is
consumed by the group; the broker's failure detection and assignment are all that is used of it. aiokafka rebalances
eagerly (no KIP-429): all work pauses while the group changes, and with the sticky assignor most of it stays in place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka import errors as ke
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from producer.config import KafkaConfig
from producer.kafka import client_options, give_up, translate

log = structlog.get_logger("producer")

SESSION_TIMEOUT_MS = 6_000  # the least that a broker takes by default
HEARTBEAT_MS = 1_500
REBALANCE_TIMEOUT_MS = 20_000
JOIN_TIMEOUT_S = 45.0  # longer than a rebalance that waits for a member that hangs while it drains
_POLL_MS = 1_000
_CLOSE_TIMEOUT_S = 5.0

#: Told the partitions that are ours from now on, or no longer; after the latter returns somebody else may have them.
Change = Callable[[Collection[int]], Awaitable[None]]


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Joins with `start`, leaves with `close`. `owned` is what is assigned now."""

    def __init__(self, config: KafkaConfig, group: str, topic: str, *, assigned: Change, revoked: Change) -> None:
        self.owned: frozenset[int] = frozenset()
        self._config = config
        self._group = group
        self._topic = topic
        self._assigned = assigned
        self._revoked = revoked
        self._consumer: AIOKafkaConsumer | None = None
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Joins the group; what is assigned is told later. SinkUnavailableError where the group does not take us in."""
        consumer = AIOKafkaConsumer(
            **client_options(self._config),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            partition_assignment_strategy=(StickyPartitionAssignor,),
        )
        consumer.subscribe([self._topic], listener=self)
        self._consumer = consumer
        try:
            # It returns with the first assignment, for which the members that are there may drain first.
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await consumer.start()
        except (ke.KafkaError, OSError) as error:
            raise translate(error, self._config, topic=self._topic, doing="join the group of") from None
        self._polling = asyncio.create_task(self._poll(consumer))

    async def close(self) -> None:
        """Leaves the group, so that the others need not wait for the session to time out."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait({self._polling})
        if self._consumer is not None:
            await give_up(self._consumer.stop, _CLOSE_TIMEOUT_S)
            self._consumer = None

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        """A member that does not poll is put out of the group."""
        while True:
            try:
                await consumer.getmany(timeout_ms=_POLL_MS)
            except (ke.KafkaError, OSError) as error:
                log.warning(
                    "group", error=str(translate(error, self._config, topic=self._topic, doing="join the group"))
                )
                await asyncio.sleep(_POLL_MS / 1000)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        lost, self.owned = self.owned, frozenset()
        if lost:
            with contextlib.suppress(asyncio.CancelledError):
                await self._revoked(lost)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        if self._consumer is not None and assigned:
            self._consumer.pause(*assigned)  # nothing of it is wanted here
        self.owned = frozenset(place.partition for place in assigned)
        log.info("work assigned", units=sorted(self.owned))
        await self._assigned(self.owned)
