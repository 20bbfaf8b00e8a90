"""Owns exactly-once writing: pages and the checkpoint after them in one Kafka transaction.

See KIP-98 (https://cwiki.apache.org/confluence/display/KAFKA/KIP-98). What was found out about aiokafka is kept to:
a commit succeeds although a batch of it failed, so every delivery is awaited before; and a producer that failed is
never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from producer.errors import SinkUnavailableError
from producer.sinks.kafka import Connection, KafkaWriter, PreparedBatches


class TransactionalWriter(KafkaWriter):
    """A KafkaWriter whose pages become visible (to readers with ``read_committed``) by `commit` alone.

    `begin` comes first, and again after every failure. The id stands for what is owned: whoever begins with it later
    fences this writer for good, whose next page or commit then fails with CheckpointConflictError.
    """

    transactional_id: str
    _in_transaction = False

    async def begin(self) -> None:
        """Fences every older writer with this id and drops what had not been committed, also by a crashed one."""
        async with self._connecting:
            if self._connection is not None:
                self._connection.fail(SinkUnavailableError(f"stream {self._stream!r}: the transaction was given up"))
                await self._connection.close()
            self._in_transaction = False
            self._connection = await Connection.open(
                self._config, self._topic.name, transactional_id=self.transactional_id
            )

    async def submit(self, prepared: PreparedBatches) -> asyncio.Future[None]:
        await self._enter()
        return await super().submit(prepared)

    async def commit(self, topic: str, records: Sequence[tuple[int, bytes, bytes | None]]) -> None:
        """Commits the pages submitted since the last commit together with `records` (partition, key and value) of
        `topic`. All of the pages must have been acknowledged. After an error nothing of it counts."""
        await self._enter()
        connection = await self._connected()
        try:
            async with connection.deadline():
                producer = connection.producer
                sent = [await producer.send(topic, value, key, partition=place) for place, key, value in records]
                await asyncio.gather(*sent)
                await connection.producer.commit_transaction()
        except BaseException as error:
            ours = connection.fail(error)
            if isinstance(error, Exception):
                raise ours from None
            raise
        self._in_transaction = False

    async def close(self) -> None:
        """Drops what has not been committed at once, so that no reader waits for the broker to time it out."""
        connection = self._connection
        if connection is not None and not connection.failed and self._in_transaction:
            try:
                async with connection.deadline():
                    await connection.producer.abort_transaction()
            except Exception as error:
                connection.fail(error)
        await super().close()

    async def _enter(self) -> None:
        connection = await self._connected()
        if not self._in_transaction:
            await connection.producer.begin_transaction()
            self._in_transaction = True

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.failed:
            raise SinkUnavailableError(f"stream {self._stream!r}: the transaction has failed and must begin anew")
        return self._connection
