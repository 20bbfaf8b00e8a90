"""Owns how a competitor is measured: its process (CPU, memory, start), and what it left on the topic (count, times)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from confluent_kafka import Consumer, KafkaError, TopicPartition

ROOT = Path(__file__).parent.parent
_SAMPLE_S = 0.02
_READ_TIMEOUT_S = 60.0


class WrongResult(Exception):
    """A competitor failed, or did not do the work: there is no time to report."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a process needed. `started_at` is in seconds since 1970, just before it was made."""

    started_at: float
    ended_at: float
    cpu_s: float
    peak_rss_bytes: int
    stdout: str


@dataclass(frozen=True, slots=True)
class Landed:
    """What is on the topics: records, distinct keys a topic, bytes of keys and values, and each record's append.

    `appended_s` is sorted, in seconds since 1970 with the broker's millisecond resolution.
    """

    records: int
    distinct: int
    bytes: int
    appended_s: np.ndarray
    first_s: Mapping[str, float]
    last_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. Bytes are those of keys and values, uncompressed; None is what a competitor does not have."""

    rows: int
    seconds: float
    mbytes_per_s: float
    cpu_s: float
    peak_rss_mb: float | None
    startup_s: float | None = None
    total_s: float | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """The figures that are reported, by name."""
        found: dict[str, float | None] = {
            "rows_per_s": self.rows / self.seconds,
            "rows_per_s_with_startup": self.rows / self.total_s if self.total_s else None,
            "mbytes_per_s": self.mbytes_per_s,
            "cpu_s_per_million": self.cpu_s / self.rows * 1e6,
            "peak_rss_mb": self.peak_rss_mb,
            "startup_s": self.startup_s,
        }
        return {name: value for name, value in found.items() if value is not None}


def run(
    command: Sequence[str],
    *,
    timeout_s: float = 900.0,
    env: Mapping[str, str] | None = None,
    done: Callable[[], bool] | None = None,
) -> Use:
    """Runs a process to its end, or until `done`, when it gets SIGTERM. WrongResult with its last words on failure.

    The peak is the kernel's high-water mark of the process's own memory (``VmHWM``): ``ru_maxrss`` would count what
    *this* process had when it forked.
    """
    # Byte code may be written, as on any installation: else every start would compile all it imports.
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started_at = time.time()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, env={**surroundings, **(env or {})}
        )
        watch = _Peak(process.pid)
        stopped = False
        try:
            deadline = time.monotonic() + timeout_s
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > deadline:
                    raise WrongResult(f"not done after {timeout_s:.0f} s")
                if done is not None and not stopped and done():
                    stopped = True
                    process.send_signal(signal.SIGTERM)
                time.sleep(_SAMPLE_S)
        except BaseException as error:
            process.kill()
            process.wait()
            if isinstance(error, WrongResult):
                raise WrongResult(f"{command[0]}: {error}: {_tail(out, err)}") from None
            raise
        finally:
            watch.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0 and not stopped:
            raise WrongResult(f"{' '.join(command)[:200]}: exit code {process.returncode}: {_tail(out, err)}")
        out.seek(0)
        return Use(
            started_at,
            time.time(),
            usage.ru_utime + usage.ru_stime,
            watch.peak_bytes,
            out.read().decode(errors="replace"),
        )


def _tail(*files: IO[bytes]) -> str:
    text = ""
    for file in files:
        file.seek(0)
        text += file.read().decode(errors="replace")[-1500:]
    return text


class _Peak:
    """Follows a process's ``VmHWM`` until it ends (where there is no /proc: nothing)."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            try:
                found = re.search(r"VmHWM:\s+(\d+) kB", self._status.read_text())
            except OSError:
                return
            if found:
                self.peak_bytes = max(self.peak_bytes, int(found[1]) * 1024)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def python(module: str, *arguments: str) -> list[str]:
    """The command of a module of this checkout."""
    return [sys.executable, "-m", module, *arguments]


class Counter:
    """Asks, at most every `interval_s`, how many records a topic has (its end offsets, where nothing is
    transactional). WrongResult when `patience_s` pass without a new one."""

    def __init__(self, bootstrap: str, topic: str, *, interval_s: float = 0.25, patience_s: float = 60.0) -> None:
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-count"})
        partitions = self._consumer.list_topics(topic, 10).topics[topic].partitions
        self._places = [TopicPartition(topic, p) for p in partitions]
        self._interval_s = interval_s
        self._patience_s = patience_s
        self._count = 0
        self._asked_at = self._moved_at = time.monotonic()

    def __call__(self) -> int:
        now = time.monotonic()
        if now - self._asked_at < self._interval_s:
            return self._count
        self._asked_at = now
        count = sum(self._consumer.get_watermark_offsets(place, 10)[1] for place in self._places)
        if count > self._count:
            self._count, self._moved_at = count, now
        elif now - self._moved_at > self._patience_s:
            raise WrongResult(f"stuck at {count:,} records for {self._patience_s:.0f} s")
        return self._count

    def close(self) -> None:
        self._consumer.close()


def landed(bootstrap: str, topics: Sequence[str]) -> Landed:
    """Reads whole topics, committed records only."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench-read",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "check.crcs": True,
            "queued.max.messages.kbytes": 65536,
        }
    )
    times: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    size = 0
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    try:
        known = consumer.list_topics(timeout=30).topics
        places = [TopicPartition(topic, p, 0) for topic in topics for p in known[topic].partitions]
        consumer.assign(places)
        open_ends = len(places)
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while open_ends:
            got = consumer.consume(20_000, 0.5)
            batch_times, batch_keys = [], []
            for message in got:
                if (error := message.error()) is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise WrongResult(f"reading {message.topic()}: {error}")
                    open_ends -= 1
                    continue
                key, topic, at = message.key(), str(message.topic()), message.timestamp()[1] / 1000
                size += len(key or b"") + len(message.value() or b"")
                batch_times.append(at)
                batch_keys.append(hash((topic, key)))
                first[topic] = min(at, first.get(topic, at))
                last[topic] = max(at, last.get(topic, at))
            if batch_times:
                deadline = time.monotonic() + _READ_TIMEOUT_S
                times.append(np.array(batch_times))
                keys.append(np.array(batch_keys, np.int64))
            elif time.monotonic() > deadline:
                raise WrongResult(f"reading the topics back: no record for {_READ_TIMEOUT_S:.0f} s")
    finally:
        consumer.close()
    if not times:
        raise WrongResult("there is no record on the topic")
    appended = np.sort(np.concatenate(times))
    return Landed(len(appended), len(np.unique(np.concatenate(keys))), size, appended, first, last)


def sample(use: Use, found: Landed, rows: int, **extra: object) -> Sample:
    """What a process did to a topic; WrongResult unless each row is there, once."""
    if found.records != rows or found.distinct != rows:
        raise WrongResult(f"{found.records:,} records of {found.distinct:,} keys instead of {rows:,}")
    begin, end = float(found.appended_s[0]), float(found.appended_s[-1])
    seconds = max(end - begin, 0.001)
    return Sample(
        rows=rows,
        seconds=seconds,
        mbytes_per_s=found.bytes / seconds / 1e6,
        cpu_s=use.cpu_s,
        peak_rss_mb=use.peak_rss_bytes / 1e6,
        startup_s=begin - use.started_at,
        total_s=end - use.started_at,
        extra=extra,
    )
