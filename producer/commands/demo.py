"""Owns ``producer demo``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any

from producer.commands import options

DEFAULT_ROWS = 1_000_000


def add_parser(subparsers: Any) -> None:
    text = "stream a made-up table to a real Kafka and prove that everything arrived"
    parser = subparsers.add_parser(
        "demo", help=text, description=f"{text}. KAFKA_BOOTSTRAP names a broker to use; else one is started."
    )
    parser.add_argument("--rows", type=_count, default=DEFAULT_ROWS, metavar="N", help=f"default {DEFAULT_ROWS:,}")
    parser.add_argument("--keep", action="store_true", help="keep the table, the configuration and the topic")
    options.add_debug(parser)
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    number = int(text.replace(",", "").replace("_", ""))
    if number < 1:
        raise ValueError
    return number


def run(args: argparse.Namespace) -> int:
    from producer.demo import report, run_demo
    from producer.logs import configure_logs

    configure_logs("warning")
    stopped: list[int] = []

    def say(line: str) -> None:
        options.say(line)
        sys.stdout.flush()

    async def whole() -> bool:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            if not stopped:
                stopped.append(number)
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        outcome = await run_demo(args.rows, keep=args.keep, say=say)
        say(report(outcome))
        return outcome.equal

    try:
        return 0 if asyncio.run(whole()) else 1
    except asyncio.CancelledError:
        return 128 + stopped[0]
