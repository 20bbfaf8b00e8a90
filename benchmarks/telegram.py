"""Owns the measurement of Telegram: a chat on the loopback server into Kafka, beside the published tgdata package.

    python -m benchmarks.telegram [--messages N] [--published-messages N] [--rounds N] [--bootstrap HOST:PORT]

Ours: ``producer run`` as a process of its own, one session, no artificial wait, up to acknowledged Avro; also TgData
into DataFrames. Theirs: ``get_messages`` as it comes, in an environment of its own. The goals: at least 5,000
messages/s, at least 20 times the published package, memory that does not grow with the chat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from producer.embedded import EmbeddedKafka
from producer.tgdata import TgData
from tests.mtproto.running import process

PUBLISHED = "tgdata==0.1.4"


@contextlib.contextmanager
def broker(given: str | None) -> Iterator[str]:
    """The given broker, or one of our own."""
    if given:
        yield given
        return
    with EmbeddedKafka() as kafka:
        yield str(kafka.bootstrap)


def ours(folder: Path, session: str, bootstrap: str) -> tuple[float, float]:
    """Messages a second to acknowledged Avro, and the peak memory in MB."""
    name = f"bench_{uuid.uuid4().hex[:8]}"
    config = folder / f"{name}.yaml"
    account = {"type": "telegram", "api_id": 1, "api_hash": "none", "session": session, "min_delay_s": 0}
    stream = {"source": "account", "chat": "@demo", "topic": name, "partitions": 4}
    document = {
        "app": name,
        "kafka": {"bootstrap_servers": bootstrap},
        "checkpoints": {"type": "file", "path": str(folder / name)},
        "http": {"port": 0},
        "sources": {"account": account},
        "streams": [stream],
    }
    config.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "producer", "run", str(config), "--once", "--json", "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        summary: dict[str, Any] = json.loads(running.stdout.read())
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode != 0:
        sys.exit("the run failed")
    peak_mb = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return float(summary["rows_per_second"]), peak_mb


def frames(session: str) -> float:
    """Messages a second into DataFrames."""

    async def read() -> float:
        async with TgData(api_id=1, api_hash="none", session=session, min_delay_s=0) as tg:
            started = time.perf_counter()
            rows = sum([len(batch) async for batch in tg.get_all_messages("@demo", batch_size=5000)])
            return rows / (time.perf_counter() - started)

    return asyncio.run(read())


def published(folder: Path, session: str, messages: int) -> float:
    """Messages a second of the published package, in an environment of its own."""
    environment = folder / "published"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PUBLISHED, "cryptg"]
    subprocess.run(install, check=True)
    script = Path(__file__).with_name("telegram_published.py")
    done = subprocess.run(
        [str(python), str(script), session, str(messages)], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(json.loads(done.stdout)["rows_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.telegram", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=1_000_000, help="messages of the run whose memory is compared")
    parser.add_argument("--published-messages", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bootstrap", help="a Kafka broker; default: one of its own")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, broker(args.bootstrap) as bootstrap:
        folder = Path(name)
        with process("--messages", str(args.messages)) as session:
            runs = [ours(folder, session, bootstrap) for _ in range(args.rounds)]
            into_frames = max(frames(session) for _ in range(args.rounds))
            theirs = published(folder, session, args.published_messages)
        with process("--messages", str(args.many)) as session:
            many_rate, many_mb = ours(folder, session, bootstrap)
    rate, peak_mb = max(rate for rate, _ in runs), max(peak for _, peak in runs)
    rows = [
        ("producer run, to acknowledged Avro", args.messages, rate, f"{peak_mb:.0f}"),
        ("the same", args.many, many_rate, f"{many_mb:.0f}"),
        ("TgData, to DataFrames", args.messages, into_frames, ""),
        (f"{PUBLISHED} get_messages", args.published_messages, theirs, ""),
    ]
    print(f"{'Telegram, one session, loopback':<40}{'messages':>10}{'messages/s':>12}{'peak MB':>9}")
    for title, count, per_s, peak in rows:
        print(f"{title:<40}{count:>10,}{per_s:>12,.0f}{peak:>9}")
    print(f"producer run over the published package: {rate / theirs:.0f}")


if __name__ == "__main__":
    main()
