"""Owns ``producer run``: signals, progress and the HTTP side around the service, and the exit code after it."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import sys
import uuid
from contextlib import AsyncExitStack
from types import FrameType
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.errors import ConfigError, ProducerError
from producer.lean import arrow_without_pandas, httpx_without_extras, structlog_without_rich

if TYPE_CHECKING:
    from producer.config import Config
    from producer.logs import Redact
    from producer.service import StreamSummary


def add_parser(subparsers: Any) -> None:
    text = "stream everything that is configured"
    parser = subparsers.add_parser("run", help=text, description=text)
    options.add_config(parser)
    parser.add_argument("--once", action="store_true", help="stop when everything has caught up")
    options.add_json(parser, "at the end, a line of JSON for each stream on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # As process 1 of a container an unhandled SIGTERM is ignored: heard before anything slow begins.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_now)
    structlog_without_rich()
    config = options.load(args)
    arrow_without_pandas()
    if config.schema_registry is not None:
        httpx_without_extras()
    try:
        summaries, stopped_by = asyncio.run(stream_all(config, once=args.once, redact=args.redact))
    except ProducerError as error:  # only from the start: nothing has moved, and it cannot begin as it is configured
        raise ConfigError(error.message, hint=error.hint) from error
    for summary in summaries if args.json else ():
        options.say_json(summary.to_json())
    if any(summary.state == "failed" or (summary.state == "paused" and not stopped_by) for summary in summaries):
        return 1
    return 128 + stopped_by if stopped_by else 0


def _exit_now(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


async def stream_all(config: Config, *, once: bool, redact: Redact) -> tuple[list[StreamSummary], int]:
    """Runs the service until it ends or a signal stops it: the summaries, and that signal's number (else 0)."""
    import structlog

    from producer import http, progress
    from producer.metrics import Metrics
    from producer.service import Service

    log = structlog.get_logger("producer.run")
    stop = asyncio.Event()
    signals: list[int] = []

    def stopped(number: int) -> None:
        if signals:
            os._exit(128 + number)  # the second one: at once; what was acknowledged is in the checkpoint or comes again
        signals.append(number)
        log.info("stopping: draining what is in flight", signal=signal.Signals(number).name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped, number)
    metrics = Metrics()
    service = Service(config, metrics=metrics, run_id=uuid.uuid4().hex[:12])
    listener = http.bind(config.http)
    log.info("listening", address="http://{}:{}".format(*listener.getsockname()[:2]))
    async with AsyncExitStack() as around:
        around.callback(listener.close)
        running = asyncio.create_task(service.run(once=once, stop=stop))
        around.push_async_callback(_cancelled, running)
        await around.enter_async_context(progress.showing(service, terminal=sys.stderr.isatty(), say=log.info))
        # Many a run ends before anybody asks, and HTTP's library is a tenth of what a short one costs. It is imported
        # in a thread, since pages would stand still meanwhile; who asks waits in the socket's queue.
        asking = asyncio.create_task(http.asked(listener))
        around.push_async_callback(_cancelled, asking)
        await asyncio.wait({running, asking}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await asyncio.to_thread(importlib.import_module, "aiohttp.web")
            await around.enter_async_context(http.serving(listener, metrics, service, redact))
        summaries = await running
    for summary in summaries:
        log.info(
            summary.state,
            stream=summary.stream,
            acked=summary.acked,
            seconds=round(summary.seconds, 2),
            rows_per_second=round(summary.rows_per_second),
        )
    return summaries, signals[0] if signals else 0


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
