"""Owns the killing of a real `producer run`, and what must hold each time it is dead."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from producer.config import load_config
from producer.model import KeyPosition, OffsetPosition, StreamState
from producer.parts import make_store
from tests.audit import TopicAudit


@dataclass
class Killed:
    """What many kills came to."""

    kills: int = 0
    duplicates_per_kill: list[int] = field(default_factory=list)
    seconds_to_first_record: list[float] = field(default_factory=list)


def write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    """The configuration as a file of its own."""
    path = folder / "producer.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    return path


def start(config: Path, *more: str) -> subprocess.Popen[str]:
    """`producer run CONFIG --json`, in a process of its own."""
    command = [sys.executable, "-m", "producer", "run", str(config), "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], timeout_s: float = 300) -> list[dict[str, Any]]:
    """The summaries of a run that ends by itself with exit code 0."""
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def wait_for(audit: TopicAudit, records: int, process: subprocess.Popen[str], deadline_s: float = 60) -> None:
    """Returns when the topic has so many records; the process must not end before."""
    until = time.monotonic() + deadline_s
    while audit.end() < records:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "it does not go on"
        time.sleep(0.02)


def state_of(config: Path, stream: str) -> StreamState | None:
    """What a new process would load."""

    async def load() -> StreamState | None:
        store = make_store(load_config(config))
        await store.start()
        try:
            return await store.load(stream)
        finally:
            await store.close()

    return asyncio.run(load())


def committed_keys(state: StreamState, keys: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Those of the source's `keys` (in the order of the traversal) that the checkpoint says are done."""
    found: list[tuple[Any, ...]] = []
    for checkpoint in state.checkpoints:
        lower, position = checkpoint.split.lower, checkpoint.position
        match position:
            case OffsetPosition(rows):
                found.extend(keys[:rows])
            case KeyPosition(values):
                floor = lower.values if isinstance(lower, KeyPosition) else None
                found.extend(key for key in keys if (floor is None or key > floor) and key <= values)
    return found


def kill_until_done(
    config: Path,
    stream: str,
    keys: Sequence[tuple[Any, ...]],
    audit: TopicAudit,
    *,
    kills: int,
    window: int,
    seed: int,
) -> Killed:
    """Kills the run `kills` times at random moments and lets it end; asserts the invariants after each kill.

    After each: every key that the checkpoint has passed is on the topic; the duplicates are no more than `window`
    records a kill. At the end: exactly the source's keys are on the topic.
    """
    rng = random.Random(seed)
    result = Killed()
    before_duplicates = 0
    while result.kills < kills:
        began_s = time.time()
        ends = audit.end()
        process = start(config, "--once")
        try:
            # Every other kill strikes a run that has begun to write; the rest may also strike its start.
            while result.kills % 2 and process.poll() is None and audit.end() == ends:
                time.sleep(0.01)
            moment = time.monotonic() + rng.uniform(0, 1.5 if result.kills % 2 else 4)
            while time.monotonic() < moment and process.poll() is None:
                time.sleep(0.01)
        finally:
            done = process.poll() is not None
            process.send_signal(signal.SIGKILL)
            process.communicate()
        result.kills += 1
        audit.catch_up()
        if audit.first_append_s is not None:
            result.seconds_to_first_record.append(audit.first_append_s - began_s)
        state = state_of(config, stream)
        if state is not None:
            missing = [key for key in committed_keys(state, keys) if key not in audit.keys]
            assert not missing, f"the checkpoint is ahead of the topic by {len(missing)} keys, such as {missing[:3]}"
        result.duplicates_per_kill.append(audit.duplicates - before_duplicates)
        before_duplicates = audit.duplicates
        assert result.duplicates_per_kill[-1] <= window
        if done:
            break
    (summary,) = finish(start(config, "--once"))
    assert summary["state"] == "complete"
    audit.catch_up()
    assert set(audit.keys) == set(keys)
    return result
