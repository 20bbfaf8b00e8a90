"""Owns the claim about work of a file that fails when its caller is cancelled: nobody complains of it afterwards."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from producer.sinks.files import uninterrupted


async def test_work_that_fails_after_its_caller_was_cancelled_fails_without_a_complaint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        await ended.wait()
        raise OSError("no space left on device")

    caller = asyncio.create_task(uninterrupted(work()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    ended.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gc.collect()
    await asyncio.sleep(0)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
