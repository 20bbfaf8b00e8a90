"""Owns checkpoints in Kafka: a compacted topic ``<app>.state`` with a record for each stream's plan and each split.

A commit is one transaction, so all of it is there or none; by the transactional id ``<app>.<stream>`` the broker
fences an older runner for good. A stream's plan holds its fingerprint and epoch; it outlives a reset (without the
fingerprint, and with the next epoch), so that epochs only rise. A split's record is its checkpoint; a tombstone forgets
it.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka import errors as ke

from producer.checkpoints.state_topic import StateTopic, StreamRecords, pause_key, record_key
from producer.config import Config
from producer.errors import (
    CheckpointConflictError,
    CheckpointCorruptError,
    SinkUnavailableError,
    StoreUnavailableError,
)
from producer.identity import Identity, identity_from_json, identity_to_json
from producer.kafka import abandon, client_options, connect, ensure_topic, translate
from producer.model import Checkpoint, Json, StreamState, checkpoint_from_json, checkpoint_to_json, unit_partition
from producer.worker import worker_id

#: A crashed runner's open transaction holds readers up for so long at most; a commit takes some milliseconds.
_TRANSACTION_TIMEOUT_MS = 10_000
_CLOSE_TIMEOUT_S = 2.0
_NEWER_EPOCH_WAIT_S = 2.0

#: partition, key, value
StateRecord = tuple[int, bytes, bytes | None]
T = TypeVar("T")
_Changes = Sequence[tuple[bytes, Json]]  # keys and values; None is a tombstone


@dataclass(slots=True)
class _Claim:
    """A stream that this store may write. `places` are the splits' in the plan; no `producer` after a failure."""

    epoch: int
    places: dict[str, int]
    producer: AIOKafkaProducer | None


class KafkaCheckpointStore:
    """The application's state topic (one partition, made if it is not there); see `producer.protocols`.

    Whether a runner is alive cannot be seen from outside: `claim` and `reset` fence it, and its next commit fails.
    StoreUnavailableError where the broker does not answer within ``kafka.request_timeout_s``.
    """

    def __init__(self, config: Config) -> None:
        self._config = config.kafka
        self._app = config.app
        self.topic = config.kafka.state_topic or f"{config.app}.state"
        self._partitions = config.kafka.state_partitions if config.coordination == "kafka" else 1
        self._reader = StateTopic(config.kafka, self.topic, 1)
        self._claims: dict[str, _Claim] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._work: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        with self._errors("open"):
            info = await ensure_topic(
                self._config, self.topic, partitions=self._partitions, topic_config={"cleanup.policy": "compact"}
            )
            self._partitions = info.partitions
            self._reader = StateTopic(self._config, self.topic, info.partitions)

    async def close(self) -> None:
        if self._work:
            _, late = await asyncio.wait(self._work, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
        producers = [claim.producer for claim in self._claims.values() if claim.producer is not None]
        self._claims.clear()
        await asyncio.gather(self._reader.close(), *(abandon(producer) for producer in producers))

    async def load(self, stream: str) -> StreamState | None:
        (state,) = await self.load_all([stream])
        return state

    async def load_all(self, streams: Sequence[str]) -> Sequence[StreamState | None]:
        with self._errors("read"):
            found = await self._reader.read(*{self._partition(stream) for stream in streams})
        return [self._state(stream, found.get(stream, StreamRecords())) for stream in streams]

    async def streams(self) -> Sequence[str]:
        with self._errors("read"):
            found = await self._reader.read()
        return sorted(name for name, records in found.items() if records.splits)

    async def claim(self, stream: str, above: int = 0) -> int:
        async def work() -> int:
            await self._forget(stream)
            producer = await self._new_producer(stream)
            self._claims[stream] = claim = _Claim(0, {}, producer)
            # Read once the older runner is fenced: it can change nothing any more.
            records = await self._records(stream)
            state = self._state(stream, records)
            claim.epoch = max(state.epoch if state else _epoch(records), above) + 1
            claim.places = {c.split.id: place for place, c in enumerate(state.checkpoints)} if state else {}
            known = (None, None) if state is None else (state.fingerprint, state.identity)
            await self._write(stream, claim, [_plan(stream, claim.epoch, *known)])
            return claim.epoch

        return await self._in_turn(stream, "claim", work())

    async def begin(self, state: StreamState) -> None:
        async def work() -> None:
            claim = self._claimed(state.stream, state.epoch)
            changes = _first(state, state.epoch, await self._records(state.stream))
            claim.places = {c.split.id: place for place, c in enumerate(state.checkpoints)}
            await self._write(state.stream, claim, changes)

        await self._in_turn(state.stream, "write", work())

    async def begin_units(self, state: StreamState, units: Sequence[StreamState]) -> None:
        """In one transaction of the stream's claim, so that of two processes' plans never a part of each is there."""

        async def work() -> None:
            claim = self._claimed(state.stream, state.epoch)
            changes: list[tuple[bytes, Json]] = []
            for unit in units:
                old = await self._records(unit.stream)
                changes += _first(unit, _epoch(old), old)
            await self._write(state.stream, claim, changes + _first(state, state.epoch, StreamRecords()))

        await self._in_turn(state.stream, "write", work())

    async def commit(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> None:
        async def work() -> None:
            claim = self._claimed(stream, epoch)
            for checkpoint in changed:
                claim.places.setdefault(checkpoint.split.id, len(claim.places))
            await self._write(stream, claim, _checkpoints(stream, claim, changed))

        await self._in_turn(stream, "write", work())

    async def set_paused(self, stream: str, epoch: int, paused: bool) -> None:
        """A record of its own, outside of transactions: the stream's transactional id may be lent just now, and who
        pauses a stream may be told twice."""

        async def work() -> None:
            self._claimed(stream, epoch)
            producer = AIOKafkaProducer(**client_options(self._config), acks="all", enable_idempotence=True)
            await connect(producer, producer.stop, self._config)
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    key, value = _pause(stream, paused)
                    await producer.send_and_wait(self.topic, _json(value), key, partition=self._partition(stream))
            finally:
                await abandon(producer)

        await self._in_turn(stream, "write", work())

    async def add(self, stream: str, epoch: int, unit: str, checkpoint: Checkpoint) -> None:
        """In a transaction of the stream's own claim: the unit's runner has the unit's, and may be in one just now."""

        async def work() -> None:
            claim = self._claimed(stream, epoch)
            splits = (await self._records(unit)).splits
            record = _checkpoint(unit, checkpoint, place=len(splits), epoch=epoch)
            await self._write(stream, claim, [record])

        await self._in_turn(stream, "write", work())

    def transactional_id(self, stream: str) -> str:
        """The id by which a stream's runner is told from an older one."""
        return f"{self._app}.{stream}"

    @property
    def partitions(self) -> int:
        """Of the state topic."""
        return self._partitions

    async def release(self, stream: str) -> None:
        """Gives a claim up, for another process to take. One that is still being made is waited for: done later, it
        would fence that process."""
        await self._in_turn(stream, "release", self._forget(stream))

    async def lend(self, stream: str, epoch: int) -> None:
        """Leaves the stream's transactional id to a writer that commits `records` in transactions of its own.

        CheckpointConflictError where the claim is not the newest: such a writer may not fence the newer runner.
        """

        async def work() -> None:
            claim = self._claimed(stream, epoch)
            if claim.producer is not None:
                producer, claim.producer = claim.producer, None
                await abandon(producer)
            await self._refuse_newer(stream, claim)

        await self._in_turn(stream, "read", work())

    def _partition(self, stream: str) -> int:
        """Where a stream's records are: a unit of shared work is named after its partition, all else is in 0."""
        return (unit_partition(stream) or 0) % self._partitions

    async def _read(self, stream: str) -> dict[str, StreamRecords]:
        return await self._reader.read(self._partition(stream))

    async def _records(self, stream: str) -> StreamRecords:
        return (await self._read(stream)).get(stream, StreamRecords())

    def records(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> list[StateRecord]:
        """The splits' checkpoints as records (partition, key, value) of `topic`."""
        claim = self._claimed(stream, epoch)
        for checkpoint in changed:
            claim.places.setdefault(checkpoint.split.id, len(claim.places))
        place = self._partition(stream)
        return [(place, key, _json(value)) for key, value in _checkpoints(stream, claim, changed)]

    async def reset(self, stream: str) -> bool:
        async def work() -> bool:
            held = self._claims.get(stream)
            claim = held or _Claim(0, {}, await self._new_producer(stream))
            try:
                records = await self._records(stream)
                if not records.splits and _fingerprint(records) is None:
                    return False
                # A runner that is still alive finds the higher epoch: else it would take its being fenced for a
                # transaction that took too long, and go on.
                plan = _plan(stream, _epoch(records) + 1, None)
                splits = ((record_key(stream, split), None) for split in records.splits)
                await self._write(stream, claim, [plan, _pause(stream, False), *splits])
                await self._forget(stream)
                return True
            finally:
                if held is None and claim.producer is not None:
                    await abandon(claim.producer)

        return await self._in_turn(stream, "reset", work())

    # --- transactions ----------------------------------------------------------------------------------------------

    async def _in_turn(self, stream: str, doing: str, work: Coroutine[Any, Any, T]) -> T:
        """Runs the work to its own end or deadline even when the caller is cancelled: a transaction that is being
        committed cannot be called back, and the next one of the stream has to wait for it."""

        async def turn() -> T:
            async with self._turns[stream]:
                with self._errors(doing, stream):
                    return await work

        task = asyncio.create_task(turn())
        self._work.add(task)
        task.add_done_callback(self._worked)
        return await asyncio.shield(task)

    def _worked(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # seen, though the caller may have been cancelled

    async def _write(self, stream: str, claim: _Claim, changes: _Changes) -> None:
        """Commits records of the claimed stream and of its units."""
        if claim.producer is None:
            claim.producer = await self._reopened(stream, claim)
        producer = claim.producer
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await producer.begin_transaction()
                # commit_transaction() would succeed though a record failed: each is awaited before.
                sent = [
                    await producer.send(self.topic, _json(value), key, partition=self._partition(_stream_of(key)))
                    for key, value in changes
                ]
                await asyncio.gather(*sent)
                await producer.commit_transaction()
        except BaseException as error:
            claim.producer = None
            await abandon(producer)
            if isinstance(error, ke.ProducerFenced | ke.InvalidProducerEpoch):
                # By a newer runner, whose epoch is there in a moment, or by the broker: the transaction took too long.
                await asyncio.sleep(_NEWER_EPOCH_WAIT_S)
                await self._refuse_newer(stream, claim)
                raise StoreUnavailableError(
                    f"checkpoints: a commit of {stream!r} took too long for the broker"
                ) from None
            raise

    async def _new_producer(self, stream: str) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **client_options(self._config),
            transactional_id=self.transactional_id(stream),
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
            acks="all",
        )
        await connect(producer, producer.stop, self._config)
        return producer

    async def _reopened(self, stream: str, claim: _Claim) -> AIOKafkaProducer:
        """A new producer after a failure. Making one fences anybody, so a newer runner is looked for before it; one
        that came in between, and is fenced now, is found after it, and then neither goes on."""
        await self._refuse_newer(stream, claim)
        producer = await self._new_producer(stream)
        try:
            await self._refuse_newer(stream, claim)
        except BaseException:
            await abandon(producer)
            raise
        return producer

    async def _refuse_newer(self, stream: str, claim: _Claim) -> None:
        if _epoch(await self._records(stream)) > claim.epoch:
            self._claims.pop(stream, None)
            raise _taken_over(stream)

    def _claimed(self, stream: str, epoch: int) -> _Claim:
        claim = self._claims.get(stream)
        if claim is None or claim.epoch != epoch:
            raise _taken_over(stream)
        return claim

    async def _forget(self, stream: str) -> None:
        claim = self._claims.pop(stream, None)
        if claim is not None and claim.producer is not None:
            await abandon(claim.producer)

    # --- records ---------------------------------------------------------------------------------------------------

    def _state(self, stream: str, records: StreamRecords) -> StreamState | None:
        if not records.splits and _fingerprint(records) is None:
            return None
        try:
            plan = json.loads(records.plan or b"{}")
            splits = [json.loads(value) for value in records.splits.values()]
            splits.sort(key=lambda value: int(value["place"]))
            return StreamState(
                stream,
                str(plan["fingerprint"]),
                int(plan["epoch"]),
                tuple(checkpoint_from_json(value) for value in splits),
                max((str(value["updated_at"]) for value in splits), default=str(plan["updated_at"])),
                paused=records.paused is not None,
                owner=plan.get("worker"),
                identity=identity_from_json(plan.get("identity")),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointCorruptError(
                f"the checkpoint of stream {stream!r} in topic {self.topic!r} cannot be read: {error!r}",
                hint=f"start the stream over with: producer checkpoint reset CONFIG {stream}",
            ) from None

    @contextmanager
    def _errors(self, doing: str, stream: str = "") -> Iterator[None]:
        try:
            yield
        except (ke.ProducerFenced, ke.InvalidProducerEpoch):
            raise _taken_over(stream) from None
        except (ke.KafkaError, OSError, SinkUnavailableError) as error:  # TimeoutError is an OSError
            ours = translate(error, self._config, topic=self.topic, doing=doing)
            if isinstance(ours, SinkUnavailableError):
                raise StoreUnavailableError(f"checkpoints: {ours.message}", hint=ours.hint) from None
            raise ours from None


def _taken_over(stream: str) -> CheckpointConflictError:
    return CheckpointConflictError(
        f"stream {stream!r} has been taken over by another runner",
        hint="let only one run of a stream use a state topic",
    )


def _plan(stream: str, epoch: int, fingerprint: str | None, identity: Identity | None = None) -> tuple[bytes, Json]:
    plan: dict[str, Json] = {"version": 1, "epoch": epoch, "worker": worker_id(), "updated_at": _now()}
    if fingerprint is not None:
        plan["fingerprint"] = fingerprint
    if identity is not None:
        plan["identity"] = identity_to_json(identity)
    return record_key(stream), plan


def _pause(stream: str, paused: bool) -> tuple[bytes, Json]:
    return pause_key(stream), {"version": 1, "updated_at": _now()} if paused else None


def _first(state: StreamState, epoch: int, old: StreamRecords) -> list[tuple[bytes, Json]]:
    """A state as it begins, in the place of an older one."""
    checkpoints = [_checkpoint(state.stream, c, place=place, epoch=epoch) for place, c in enumerate(state.checkpoints)]
    kept = {key for key, _ in checkpoints}
    gone = [(key, None) for key in (record_key(state.stream, split) for split in old.splits) if key not in kept]
    plan = _plan(state.stream, epoch, state.fingerprint, state.identity)
    return [plan, _pause(state.stream, state.paused), *gone, *checkpoints]


def _checkpoints(stream: str, claim: _Claim, checkpoints: Sequence[Checkpoint]) -> list[tuple[bytes, Json]]:
    return [_checkpoint(stream, c, place=claim.places[c.split.id], epoch=claim.epoch) for c in checkpoints]


def _checkpoint(stream: str, checkpoint: Checkpoint, *, place: int, epoch: int) -> tuple[bytes, Json]:
    value = {**checkpoint_to_json(checkpoint), "place": place, "epoch": epoch, "updated_at": _now()}
    return record_key(stream, checkpoint.split.id), value


def _stream_of(key: bytes) -> str:
    return str(json.loads(key)["stream"])


def _epoch(records: StreamRecords) -> int:
    """The newest epoch of a stream; 0 where there is none, or none that can be read."""
    plan = _plan_of(records)
    return int(plan["epoch"]) if isinstance(plan.get("epoch"), int) else 0


def _fingerprint(records: StreamRecords) -> Json:
    return _plan_of(records).get("fingerprint")


def _plan_of(records: StreamRecords) -> dict[str, Json]:
    try:
        plan = json.loads(records.plan or b"{}")
    except ValueError:
        return {"fingerprint": "not readable"}
    return plan if isinstance(plan, dict) else {"fingerprint": "not readable"}


def _json(value: Json) -> bytes | None:
    return None if value is None else json.dumps(value, separators=(",", ":")).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
