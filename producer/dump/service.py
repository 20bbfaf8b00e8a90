"""Several dumps by their tables' names: one after the other or in parallel, each with its own state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from producer.dump.config import DumpConfig
from producer.dump.manager import AsyncDumpManager, Client, ProgressCallback
from producer.dump.progress import DumpProgress, DumpStats
from producer.errors import ConfigError
from producer.protocols import Source


class DumpService:
    """Dumps tables of one client, or of one source of the engine, which its owner closes.

    `pause`, `resume` and `get_stats` go by the table's name. Of a table that was never dumped here `get_stats` knows
    None, and the others raise ConfigError.
    """

    def __init__(self, client: Source | Client) -> None:
        self._client = client
        self._managers: dict[str, AsyncDumpManager] = {}

    async def dump(self, config: DumpConfig, progress_callback: ProgressCallback | None = None) -> DumpStats:
        """Dumps one table to its end; see `AsyncDumpManager.dump`."""
        manager = self._managers[config.table] = AsyncDumpManager(self._client, config)
        return await manager.dump(progress_callback)

    async def dump_many(
        self,
        configs: Sequence[DumpConfig],
        max_concurrent: int = 2,
        progress_callback: Callable[[str, DumpProgress], object] | None = None,
    ) -> list[DumpStats]:
        """Dumps several tables, `max_concurrent` at a time; the statistics in the order of `configs`. The callback is
        given the table's name and its progress.

        A table that fails does not stop the others; its error is raised when they are done, and `get_stats` tells
        of each. With several failures the first is raised and the others are notes of it.
        """
        if max_concurrent < 1:
            raise ConfigError(f"max_concurrent must be 1 or more, not {max_concurrent}")
        free = asyncio.Semaphore(max_concurrent)

        async def dump(config: DumpConfig) -> DumpStats:
            report = None if progress_callback is None else partial(progress_callback, config.table)
            async with free:
                return await self.dump(config, report)

        results = await asyncio.gather(*(dump(config) for config in configs), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            for other in errors[1:]:
                errors[0].add_note(str(other))
            raise errors[0]
        return [result for result in results if isinstance(result, DumpStats)]

    def pause(self, table: str) -> None:
        self._manager(table).pause()

    def resume(self, table: str) -> None:
        self._manager(table).resume()

    def get_stats(self, table: str) -> DumpStats | None:
        manager = self._managers.get(table)
        return None if manager is None else manager.stats

    def _manager(self, table: str) -> AsyncDumpManager:
        if table not in self._managers:
            known = ", ".join(sorted(self._managers)) or "none"
            raise ConfigError(f"table {table!r} is not being dumped", hint=f"dumped here: {known}")
        return self._managers[table]
