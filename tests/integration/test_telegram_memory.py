"""Owns the claim that memory does not grow with the chat: ten times the messages in the same memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.faults.killing import write_config
from tests.mtproto.running import process


def peak_mb(folder: Path, kafka_bootstrap: str, topic: str, messages: int) -> float:
    """The peak memory of a run over a chat of so many messages, with a window of edits watched."""
    folder.mkdir()
    with process("--messages", str(messages)) as session:
        config = write_config(
            folder,
            {
                "app": topic,
                "kafka": {"bootstrap_servers": kafka_bootstrap},
                "checkpoints": {"type": "file", "path": str(folder / "state")},
                "http": {"port": 0},
                "sources": {
                    "account": {"type": "telegram", "api_id": 1, "api_hash": "h", "session": session, "min_delay_s": 0}
                },
                "streams": [{"source": "account", "chat": "@demo", "topic": topic, "mode": "snapshot_then_tail"}],
            },
        )
        command = [sys.executable, "-m", "producer", "run", str(config), "--once", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
            assert running.stdout is not None
            acked = json.loads(running.stdout.read())["acked"]
            _, status, usage = os.wait4(running.pid, 0)
            running.returncode = os.waitstatus_to_exitcode(status)
    assert (running.returncode, acked) == (0, messages)
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def test_ten_times_the_messages_need_the_same_memory(kafka_bootstrap: str, unique: str, tmp_path: Path) -> None:
    few = peak_mb(tmp_path / "few", kafka_bootstrap, f"{unique}.few", 25_000)
    many = peak_mb(tmp_path / "many", kafka_bootstrap, f"{unique}.many", 250_000)
    assert many < few + 40
