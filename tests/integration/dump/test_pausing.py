"""Dumps are paused, cancelled, and run side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from producer.dump import AsyncDumpManager, DumpConfig, DumpProgress, DumpService
from producer.errors import (
    CheckpointConflictError,
    ConfigError,
    PermanentError,
)
from producer.sources.iptvportal import AsyncIPTVPortalClient
from tests.dump import expected, ids_of, read_state, stats_of


@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_nothing_is_written_while_paused(client: AsyncIPTVPortalClient, out: Path, strategy: Any) -> None:
    config = DumpConfig(table="terminal", output_dir=out, chunk_size=10, strategy=strategy)
    service = DumpService(client)
    rows_at_pause: list[int] = []

    def pause_once(progress: DumpProgress) -> None:
        if not rows_at_pause:
            rows_at_pause.append(progress.dumped_rows)
            service.pause("terminal")

    task = asyncio.create_task(service.dump(config, progress_callback=pause_once))
    while not rows_at_pause:
        await asyncio.sleep(0.001)
    stats = stats_of(service, "terminal")
    assert stats.state == "paused"
    held = await _settled(out / "terminal.jsonl")
    # What was on its way when the pause came: of each range a chunk that was written, and one that was being written.
    assert len(held.splitlines()) <= rows_at_pause[0] + 10 * (6 if strategy == "id_range" else 2)
    assert read_state(config)["dumped_rows"] == stats.progress.dumped_rows == len(held.splitlines())
    elapsed = stats.progress.elapsed_seconds()
    await asyncio.sleep(0.2)
    assert (out / "terminal.jsonl").read_bytes() == held
    assert stats.progress.elapsed_seconds() == elapsed
    service.resume("terminal")
    assert (await task).progress.dumped_rows == 1000
    assert sorted(ids_of(stats.files)) == [row["id"] for row in expected("terminal")]


async def _settled(path: Path) -> bytes:
    """The file once it has been the same 30 times in a row."""
    same, before = 0, b""
    while same < 30:
        await asyncio.sleep(0.005)
        now = path.read_bytes()
        same, before = (same + 1 if now == before else 0), now
    return before


async def test_a_cancelled_dump_keeps_its_state_and_goes_on(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="terminal", output_dir=out, chunk_size=10)
    service, begun = DumpService(client), asyncio.Event()
    task = asyncio.create_task(service.dump(config, progress_callback=lambda _: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stopped = stats_of(service, "terminal")
    assert (stopped.state, read_state(config)["dumped_rows"]) == ("stopped", stopped.progress.dumped_rows)
    stats = await service.dump(config)
    assert ids_of(stats.files) == [row["id"] for row in expected("terminal")]


async def test_several_tables_keep_their_own_states_and_one_failure_stops_no_other(
    client: AsyncIPTVPortalClient, out: Path
) -> None:
    configs = [DumpConfig(table=table, output_dir=out) for table in ("tv_channel", "no_such", "media", "nor_this")]
    service = DumpService(client)
    with pytest.raises(PermanentError, match="no_such") as caught:
        await service.dump_many(configs, max_concurrent=3)
    assert "nor_this" in caught.value.__notes__[0]
    assert [stats_of(service, c.table).state for c in configs] == ["complete", "failed", "complete", "failed"]
    assert [read_state(c)["table"] for c in configs if c.state_path.exists()] == ["tv_channel", "media"]


async def test_two_dumps_of_one_table_to_one_place_are_refused(client: AsyncIPTVPortalClient, out: Path) -> None:
    config = DumpConfig(table="terminal", output_dir=out, chunk_size=10)
    first = DumpService(client)
    begun = asyncio.Event()
    task = asyncio.create_task(first.dump(config, progress_callback=lambda _: begun.set()))
    await begun.wait()
    with pytest.raises(CheckpointConflictError, match="being dumped"):
        await DumpService(client).dump(config)
    with pytest.raises(CheckpointConflictError, match="being dumped"):
        AsyncDumpManager(client, config).reset()
    assert (await task).state == "complete"


async def test_a_table_that_is_not_dumped_cannot_be_paused(client: AsyncIPTVPortalClient) -> None:
    with pytest.raises(ConfigError, match="'nothing' is not being dumped"):
        DumpService(client).pause("nothing")
