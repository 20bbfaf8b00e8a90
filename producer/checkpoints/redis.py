"""Owns checkpoints in Redis: a hash a stream, a lock with a timeout, a fencing number that is checked on every commit.

Under the prefix (``etl:``): hash ``checkpoint:STREAM`` with ``last_id``, ``worker`` and ``timestamp`` for people and
scripts, and what a run needs beside them; ``lock:STREAM`` with the holder's token, renewed while it lives;
``epoch:STREAM``, which rises with every claim and outlives a reset. Each change is one Lua script, so it happens whole
or not at all, and a holder that slept past its lock cannot commit. Each commit is published on ``progress:STREAM``.
What a commit is worth is what Redis keeps: ``appendonly yes`` survives its restart.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from producer.checkpoints.progress import last_id, total_rows
from producer.config import Config, RedisCheckpointsConfig
from producer.errors import (
    CheckpointConflictError,
    CheckpointCorruptError,
    CheckpointLostError,
    ProducerError,
    StandbyError,
    StoreUnavailableError,
)
from producer.identity import identity_from_json, identity_to_json
from producer.model import Checkpoint, StreamState, checkpoint_from_json, checkpoint_to_json
from producer.redis import SOCKET_TIMEOUT_S, client, redis_errors
from producer.worker import worker_id

log = structlog.get_logger("producer")

_TIMEOUT_S = 15.0
_RENEWALS = 3  # in the time of one lock
_SPLIT = "split:"

# KEYS of all scripts: the checkpoint's hash, the lock, the epoch. ARGV begins with the holder's token, the lock's
# time in ms and the application.
_CLAIM = """
local app = redis.call('HGET', KEYS[1], 'app')
if redis.call('EXISTS', KEYS[1]) == 1 and app ~= ARGV[3] then return {'foreign', app or ''} end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'held', tostring(redis.call('PTTL', KEYS[2]))} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local old = math.max(tonumber(redis.call('GET', KEYS[3]) or 0), tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0))
local epoch = string.format('%d', math.max(old, tonumber(ARGV[4])) + 1)
redis.call('SET', KEYS[3], epoch)
if app then redis.call('HSET', KEYS[1], 'epoch', epoch) end
return {'claimed', epoch}
"""
# more ARGV: epoch, whether it begins, channel, message, then fields and values
_WRITE = """
local exists = redis.call('EXISTS', KEYS[1]) == 1
local app = redis.call('HGET', KEYS[1], 'app')
if exists and app ~= ARGV[3] then return {'foreign', app or ''} end
local epoch = redis.call('GET', KEYS[3])
if epoch and epoch ~= ARGV[4] then return {'taken', epoch} end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'taken', epoch or ''} end
if not epoch or (ARGV[5] == '0' and not exists) then return {'gone', ''} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if ARGV[5] == '1' then redis.call('DEL', KEYS[1]) end
for i = 8, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PUBLISH', ARGV[6], ARGV[7])
return {'written', ''}
"""
_RENEW = """
local holder = redis.call('GET', KEYS[2])
local epoch = redis.call('GET', KEYS[3])
if (epoch and epoch ~= ARGV[4]) or (holder and holder ~= ARGV[1]) then return {'taken', ''} end
if not epoch then return {'gone', ''} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {'renewed', ''}
"""
_RELEASE = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return {'released', ''}
"""
_RESET = """
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'held', tostring(redis.call('PTTL', KEYS[2]))} end
local app = redis.call('HGET', KEYS[1], 'app')
if app ~= ARGV[3] then return {'nothing', ''} end
redis.call('INCR', KEYS[3])
redis.call('DEL', KEYS[1], KEYS[2])
return {'reset', ''}
"""


@dataclass(slots=True)
class _Claim:
    """A stream that this store may write: its splits in the order of their places, as last committed."""

    epoch: int
    splits: dict[str, Checkpoint]
    renewed_s: float  # time.monotonic() before the lock was last known to be ours


class RedisCheckpointStore:
    """The hashes of one application on one Redis (not a cluster); see `producer.protocols`.

    `claim` waits for the lock of a holder that has died (``lock_timeout_s`` at most), and refuses at once when it sees
    that one is alive; with ``coordination: redis`` it raises StandbyError instead, for the caller to ask again.
    StoreUnavailableError where Redis does not answer within 15 s.
    """

    def __init__(self, config: Config) -> None:
        settings = config.checkpoints
        if not isinstance(settings, RedisCheckpointsConfig):
            raise TypeError("this store is for checkpoints of type redis")
        self._settings = settings
        self._stands_by = config.coordination == "redis"
        self._app = config.app
        self.worker_id = worker_id()
        self._token = f"{self.worker_id}:{secrets.token_hex(8)}"
        self._redis = client(settings.url.get_secret_value(), "checkpoints.url")
        self._scripts = {text: self._redis.register_script(text) for text in (_CLAIM, _WRITE, _RENEW, _RELEASE, _RESET)}
        self._claims: dict[str, _Claim] = {}
        self.lost: Callable[[str], object] = lambda stream: None  # told of a claim that another worker may have by now
        self._turn = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        with _errors("connect"):
            async with asyncio.timeout(_TIMEOUT_S):
                await self._redis.ping()

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})
            self._renewing = None
        try:
            for stream in list(self._claims):
                await self._run(_RELEASE, "release", stream)
        except StoreUnavailableError:
            log.debug("locks are left to their timeout", streams=sorted(self._claims))
        finally:
            self._claims.clear()
            await self._redis.aclose()

    async def load(self, stream: str) -> StreamState | None:
        with _errors("read", stream):
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await self._redis.hgetall(self._key("checkpoint", stream))
        found = {str(field): str(value) for field, value in answer.items()}
        return self._state(stream, found) if found.get("app") == self._app else None

    async def streams(self) -> Sequence[str]:
        start = self._key("checkpoint", "")
        pattern = re.sub(r"([*?\[\]\\^-])", r"\\\1", start) + "*"
        names = []
        with _errors("read"):
            async with asyncio.timeout(_TIMEOUT_S):
                async for key in self._redis.scan_iter(match=pattern, count=1000):
                    if await self._redis.hget(key, "app") == self._app:
                        names.append(key.removeprefix(start))
        return sorted(set(names))

    async def claim(self, stream: str, above: int = 0) -> int:
        epoch, asked_s = await self._lock(stream, above)
        state = await self.load(stream)
        self._claims[stream] = _Claim(epoch, {c.split.id: c for c in state.checkpoints} if state else {}, asked_s)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        return epoch

    async def release(self, stream: str) -> None:
        """Gives a claim up, for another worker to take."""
        if self._claims.pop(stream, None) is not None:
            try:
                await self._run(_RELEASE, "release", stream)
            except StoreUnavailableError:
                log.debug("a lock is left to its timeout", stream=stream)

    async def begin(self, state: StreamState) -> None:
        async with self._turn:
            claim = self._claimed(state.stream, state.epoch)
            splits = {c.split.id: c for c in state.checkpoints}
            fields = {
                "app": self._app,
                "fingerprint": state.fingerprint,
                "epoch": str(state.epoch),
                "paused": _flag(state.paused),
                "identity": json.dumps(identity_to_json(state.identity)),
            }
            await self._write(state.stream, claim, fields, splits, state.checkpoints, begins=True)
            claim.splits = splits

    async def commit(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> None:
        async with self._turn:
            claim = self._claimed(stream, epoch)
            splits = claim.splits | {c.split.id: c for c in changed}
            await self._write(stream, claim, {}, splits, changed, begins=False)
            claim.splits = splits

    async def set_paused(self, stream: str, epoch: int, paused: bool) -> None:
        async with self._turn:
            claim = self._claimed(stream, epoch)
            await self._write(stream, claim, {"paused": _flag(paused)}, claim.splits, (), begins=False)

    async def reset(self, stream: str) -> bool:
        answer, _ = await self._run(_RESET, "reset", stream)
        if answer == "held":
            raise self._held(stream)
        self._claims.pop(stream, None)
        return answer == "reset"

    # --- the lock --------------------------------------------------------------------------------------------------

    async def _lock(self, stream: str, above: int) -> tuple[int, float]:
        """The epoch, and when it was asked for."""
        timeout_s = self._settings.lock_timeout_s
        give_up_at = time.monotonic() + timeout_s + SOCKET_TIMEOUT_S
        left_before_ms: float = timeout_s * 1000
        while True:
            asked_s = time.monotonic()
            answer, value = await self._run(_CLAIM, "claim", stream, str(above))
            if answer == "claimed":
                return int(value), asked_s
            if answer == "foreign":
                raise self._foreign(stream, value)
            left_ms = int(value)
            if self._stands_by:
                raise StandbyError(
                    f"stream {stream!r} is being run by another worker; standing by",
                    retry_after_s=min(timeout_s, max(0, left_ms) / 1000) + 0.05,
                )
            # Time that is left can only grow when the holder renews its lock: it is alive.
            if left_ms < 0 or left_ms > left_before_ms or time.monotonic() > give_up_at:
                raise self._held(stream)
            left_before_ms = left_ms
            await asyncio.sleep(min(left_ms / 1000, timeout_s / 10) + 0.01)

    async def _renew(self) -> None:
        """Renews all locks for as long as the store is open."""
        while True:
            await asyncio.sleep(self._settings.lock_timeout_s / _RENEWALS)
            await asyncio.gather(*(self._renew_one(stream, claim) for stream, claim in self._claims.items()))

    async def _renew_one(self, stream: str, claim: _Claim) -> None:
        asked_s = time.monotonic()
        try:
            answer, _ = await self._run(_RENEW, "renew the lock of", stream, str(claim.epoch))
        except ProducerError as error:
            log.warning("lock not renewed", stream=stream, error=str(error))
            if time.monotonic() - claim.renewed_s < self._settings.lock_timeout_s * (1 - 1 / _RENEWALS):
                return
            answer = "unknown"  # before the next look another worker may have it
        if answer == "renewed":
            claim.renewed_s = asked_s
        elif self._claims.get(stream) is claim:
            if answer == "taken":  # which shows at the next commit
                log.warning("lock lost", stream=stream)
                del self._claims[stream]
            self.lost(stream)

    def _claimed(self, stream: str, epoch: int) -> _Claim:
        claim = self._claims.get(stream)
        if claim is None or claim.epoch != epoch:
            raise _taken_over(stream)
        return claim

    def _held(self, stream: str) -> CheckpointConflictError:
        return CheckpointConflictError(
            f"stream {stream!r} is being run by another worker (it holds {self._key('lock', stream)})",
            hint="stop it first, or set coordination: redis to wait for it",
        )

    def _foreign(self, stream: str, app: str) -> CheckpointConflictError:
        owner = f"application {app!r}" if app else "something else"
        return CheckpointConflictError(
            f"{self._key('checkpoint', stream)} in Redis belongs to {owner}",
            hint="set checkpoints.prefix to one of this application's own",
        )

    # --- scripts ---------------------------------------------------------------------------------------------------

    async def _write(
        self,
        stream: str,
        claim: _Claim,
        fields: Mapping[str, str],
        splits: Mapping[str, Checkpoint],
        changed: Sequence[Checkpoint],
        *,
        begins: bool,
    ) -> None:
        now = time.time()
        places = {split: place for place, split in enumerate(splits)}
        rows, last = total_rows(splits.values()), last_id(splits.values())
        told = {"stream": stream, "worker": self.worker_id, "last_id": last, "rows": rows, "timestamp": now}
        written = {**fields, "last_id": str(last), "worker": self.worker_id, "timestamp": repr(now), "rows": str(rows)}
        for checkpoint in changed:
            split = {**checkpoint_to_json(checkpoint), "place": places[checkpoint.split.id]}
            written[_SPLIT + checkpoint.split.id] = json.dumps(split, separators=(",", ":"))
        answer, value = await self._run(
            _WRITE,
            "write",
            stream,
            str(claim.epoch),
            "1" if begins else "0",
            self._key("progress", stream),
            json.dumps(told),
            *(text for pair in written.items() for text in pair),
        )
        match answer:
            case "taken":
                self._claims.pop(stream, None)
                raise _taken_over(stream)
            case "foreign":
                raise self._foreign(stream, value)
            case "gone":
                self._claims.pop(stream, None)
                raise CheckpointLostError(
                    f"the checkpoint of stream {stream!r} went away while it was running: Redis has lost its data",
                    hint="restore it, or start the stream over; appendonly yes keeps data over a restart of Redis",
                )

    async def _run(self, script: str, doing: str, stream: str, *arguments: str) -> tuple[str, str]:
        keys = [self._key(kind, stream) for kind in ("checkpoint", "lock", "epoch")]
        lock_ms = str(int(self._settings.lock_timeout_s * 1000))
        with _errors(doing, stream):
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await self._scripts[script](keys=keys, args=[self._token, lock_ms, self._app, *arguments])
        return str(answer[0]), str(answer[1])

    def _key(self, kind: str, stream: str) -> str:
        return f"{self._settings.prefix}{kind}:{stream}"

    def _state(self, stream: str, found: Mapping[str, str]) -> StreamState:
        try:
            splits = [json.loads(value) for field, value in found.items() if field.startswith(_SPLIT)]
            splits.sort(key=lambda value: int(value["place"]))
            return StreamState(
                stream,
                found["fingerprint"],
                int(found["epoch"]),
                tuple(checkpoint_from_json(value) for value in splits),
                _iso(float(found["timestamp"])),
                paused=found.get("paused") == _flag(True),
                identity=identity_from_json(json.loads(found.get("identity", "null"))),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointCorruptError(
                f"the checkpoint of stream {stream!r} in {self._key('checkpoint', stream)} cannot be read: {error!r}",
                hint=f"start the stream over with: producer checkpoint reset CONFIG {stream}",
            ) from None


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds")


def _taken_over(stream: str) -> CheckpointConflictError:
    return CheckpointConflictError(
        f"stream {stream!r} has been taken over by another worker",
        hint="this one was away for longer than checkpoints.lock_timeout_s",
    )


def _errors(doing: str, stream: str = "") -> AbstractContextManager[None]:
    what = f"checkpoints in Redis: could not {doing}" + (f" stream {stream!r}" if stream else "")
    return redis_errors(what, "checkpoints.url")
