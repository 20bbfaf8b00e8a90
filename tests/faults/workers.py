"""Owns several `producer run` processes that share one stream's work, killed at random, and what must hold then."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producer.config import load_config
from producer.coordination.units import whole_state
from producer.model import Checkpoint, KeyPosition, StreamState
from producer.parts import make_store
from tests.audit import TopicAudit
from tests.faults.killing import write_config


def shared_configuration(
    folder: Path,
    bootstrap: str,
    database: str,
    name: str,
    *,
    delivery: str,
    rows_per_s: int,
    units: int,
    page_size: int = 1000,
) -> Path:
    """The table `events` to the topic `name`, in `units` units; `rows_per_s` is a worker's."""
    return write_config(
        folder,
        {
            "app": name,
            "kafka": {"bootstrap_servers": bootstrap, "state_partitions": units, "connect_timeout_s": 30},
            "checkpoints": {"type": "kafka"},
            "coordination": "kafka",
            "delivery": delivery,
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": database}},
            "streams": [
                {
                    "source": "shop",
                    "table": "events",
                    "topic": name,
                    "partitions": 4,
                    "page_size": page_size,
                    "max_parallel": units,
                    "max_rows_per_s": rows_per_s,
                }
            ],
        },
    )


class Workers:
    """`count` processes of one configuration. What each says goes to a file: a pipe that is full would stop it."""

    def __init__(self, config: Path, count: int) -> None:
        self._config = config
        self._started = 0
        self._log_of: dict[int, Path] = {}
        self.running = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[str]:
        self._started += 1
        path = self._config.parent / f"worker-{self._started}.log"
        command = [sys.executable, "-m", "producer", "run", str(self._config), "--once", "--json"]
        with path.open("w") as log:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self._log_of[worker.pid] = path
        return worker

    def replace(self, index: int) -> None:
        """Kills a worker and starts another one at once."""
        self.running[index].kill()
        self.running[index].communicate()
        self.running[index] = self._start()

    def failed(self) -> str | None:
        """What those said that ended by themselves and not well."""
        ended = [worker for worker in self.running if worker.poll() not in (None, 0)]
        told = (f"exit code {worker.returncode}: {self._log_of[worker.pid].read_text()[-4000:]}" for worker in ended)
        return "\n".join(told) or None

    def done(self) -> bool:
        """Whether the work has been done, by the word of one of them."""
        return any(worker.poll() == 0 for worker in self.running)

    def finish(self, timeout_s: float) -> None:
        """Waits until all have ended, complete."""
        for worker in self.running:
            out, _ = worker.communicate(timeout=timeout_s)
            assert worker.returncode == 0, self.failed()
            assert all(json.loads(line)["state"] == "complete" for line in out.splitlines())

    def close(self) -> None:
        for worker in self.running:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.communicate()


class Standstills:
    """Watches a topic's end from a thread of its own: how long nothing was appended, and between which moments."""

    def __init__(self, audit: TopicAudit) -> None:
        self._audit = audit
        self._stop = threading.Event()
        self.times: list[tuple[float, float]] = []  # from, to: of the monotonic clock
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        last, since = self._audit.end(), time.monotonic()
        while not self._stop.wait(0.1):
            end, now = self._audit.end(), time.monotonic()
            if end != last:
                self.times.append((since, now))
                last, since = end, now

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def after(self, kills: Sequence[float]) -> list[tuple[float, int]]:
        """Each standstill that kills fell into: its seconds, and how many of them."""
        counted = ((end - begin, sum(begin < kill < end for kill in kills)) for begin, end in self.times)
        return [(seconds, count) for seconds, count in counted if count]


@dataclass
class KilledWorkers:
    """What killing workers came to; of each standstill its seconds and how many kills fell into it."""

    kills: int = 0
    checks: int = 0
    standstills: list[tuple[float, int]] = field(default_factory=list)
    records: int = 0
    duplicates: int = 0
    duplicates_per_kill: list[int] = field(default_factory=list)


def shared_state(config: Path, stream: str) -> StreamState | None:
    """The stream's units as one, as a new process would load them."""

    async def load() -> StreamState | None:
        store = make_store(load_config(config))
        await store.start()
        try:
            return await whole_state(store, stream)
        finally:
            await store.close()

    return asyncio.run(load())


class NoneAhead:
    """The claim that no checkpoint is ahead of the topic; each key is looked at once, so that it costs little.

    A reader of what is committed sees nothing behind a transaction that is still open, such as a killed worker's. So
    keys that it has not seen are looked for again when it has read what was the topic's end (in `whole`) at the time.
    """

    def __init__(self, keys: Sequence[int], audit: TopicAudit, whole: TopicAudit) -> None:
        self._keys = keys
        self._audit = audit
        self._whole = whole
        self._seen: dict[int, int] = {}
        self._unseen: list[tuple[dict[int, int], list[int]]] = []

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        ends, unseen = self._whole.ends(), list[int]()
        self._audit.catch_up()
        for checkpoint in checkpoints:
            if not isinstance(checkpoint.position, KeyPosition):
                continue
            lower = checkpoint.split.lower
            begin = self._index(lower) if isinstance(lower, KeyPosition) else 0
            end = self._index(checkpoint.position)
            unseen += self._missing(self._keys[self._seen.get(begin, begin) : end])
            self._seen[begin] = max(end, self._seen.get(begin, begin))
        self._unseen.append((ends, unseen))
        while self._unseen and self._audit.has_read(self._unseen[0][0]):
            ahead = self._missing(self._unseen.pop(0)[1])
            assert not ahead, f"the checkpoints were ahead of the topic by {len(ahead)} keys: {ahead[:3]}"

    def _missing(self, keys: Sequence[int]) -> list[int]:
        return [key for key in keys if (key,) not in self._audit.keys]

    def _index(self, position: KeyPosition) -> int:
        return bisect_right(self._keys, position.values[0])


def kill_workers_until_done(
    config: Path,
    stream: str,
    keys: Sequence[int],
    audit: TopicAudit,
    whole: TopicAudit,
    *,
    workers: int,
    kills: int,
    between_s: tuple[float, float],
    seed: int,
    timeout_s: float,
) -> KilledWorkers:
    """Kills one of the workers `kills` times, each replaced at once; then lets them end.

    After each kill: no checkpoint is ahead of what `audit` reads. At the end: exactly the source's `keys` are on the
    topic. `whole` looks at the topic's end, also at what is not committed.
    """
    rng, result, none_ahead = random.Random(seed), KilledWorkers(), NoneAhead(keys, audit, whole)
    group, moments = Workers(config, workers), list[float]()
    standstills = Standstills(whole)
    try:
        _wait_for(whole, 1, group)
        while result.kills < kills and not group.done():
            time.sleep(rng.uniform(*between_s))
            failed = group.failed()
            assert failed is None, failed
            moments.append(time.monotonic())
            group.replace(rng.randrange(workers))
            result.kills += 1
            state, before = shared_state(config, stream), audit.duplicates
            none_ahead.check(state.checkpoints if state is not None else ())
            result.duplicates_per_kill.append(audit.duplicates - before)
            result.checks += 1
        group.finish(timeout_s)
    finally:
        standstills.close()
        group.close()
    audit.catch_up()
    missing = [key for key in keys if (key,) not in audit.keys]
    assert not missing, f"{len(missing)} keys are missing, such as {missing[:3]}"
    assert len(audit.keys) == len(keys), "there are keys that the source does not have"
    result.standstills = standstills.after(moments)
    result.records, result.duplicates = audit.records, audit.duplicates
    return result


def _wait_for(audit: TopicAudit, records: int, group: Workers, deadline_s: float = 90) -> None:
    until = time.monotonic() + deadline_s
    while audit.end() < records:
        failed = group.failed()
        assert failed is None, failed
        assert time.monotonic() < until, "no progress"
        time.sleep(0.05)


def verified(config: Path, stream: str, timeout_s: float = 300) -> dict[str, Any]:
    """What `producer verify` found, which agrees."""
    command = [sys.executable, "-m", "producer", "verify", str(config), stream, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found
