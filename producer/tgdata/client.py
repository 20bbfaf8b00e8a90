"""`TgData`: the messages of chats as DataFrames, by one account.

A checkpoint moves when the caller asks for the next batch, or when the loop ends by itself: a batch whose processing
failed is delivered again. Without ``async with`` every call connects and disconnects by itself. Any number of calls may
run concurrently on one `TgData`: they share the connection and the rate limit, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload

import pyarrow as pa

from producer.tgdata.arguments import Query, query_of, read_argument
from producer.tgdata.checkpoint_file import CheckpointFile, MessageCheckpoint
from producer.tgdata.connection import Connection
from producer.tgdata.frame import MessageFrame, frame_of
from producer.tgdata.pace import first_size, next_delay, next_size
from producer.tgdata.progress import Progress, ProgressCallback
from producer.tgdata.reading import Rate, Reading
from producer.tgdata.settings import telegram_config

GIVE_UP_AFTER_S = 600.0


class _Block:
    """One ``async with`` block: the checkpoints that count when it ends normally."""

    def __init__(self) -> None:
        self._pending: dict[Path, tuple[CheckpointFile, MessageCheckpoint]] = {}

    def keep(self, file: CheckpointFile, checkpoint: MessageCheckpoint) -> None:
        """Keeps a checkpoint, and its file locked, until it is settled."""
        self._pending[file.path] = file, checkpoint

    def keeps(self, file: CheckpointFile) -> bool:
        """Whether the file is kept by `keep`."""
        return any(kept is file for kept, _ in self._pending.values())

    def settle(self, path: Path) -> None:
        """Writes the checkpoint that is kept for this file, if there is one."""
        if (kept := self._pending.pop(path, None)) is not None:
            file, checkpoint = kept
            try:
                file.save(checkpoint)
            finally:
                file.release()

    def end(self, *, normally: bool) -> None:
        """Settles all checkpoints, or drops them after an error: their messages come again."""
        try:
            for path in list(self._pending) if normally else ():
                self.settle(path)
        finally:
            for file, _ in self._pending.values():
                file.release()
            self._pending.clear()


#: The blocks around the running task, innermost last: a task's error concerns its own block only.
_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("blocks", default=())


class TgData:
    """One Telegram account.

    `session` is a session string (see ``producer telegram login``), or the path of a file that holds one or that is a
    session file of Telethon. `config_path` names a ``config.ini`` of the tgdata package. What is given in neither way
    comes from ``TELEGRAM_API_ID``, ``TELEGRAM_API_HASH`` and ``TELEGRAM_SESSION``, then from ``config.ini`` in the
    working folder. Other settings are those of `TelegramConfig`; ``TELEGRAM_MIN_DELAY_S`` gives its ``min_delay_s``.
    With `original_columns` the frames have the column names of the tgdata package (``MessageId``, ...).
    ConfigError names a setting that is missing or wrong.
    """

    def __init__(
        self,
        config_path: str | Path | None = None,
        *,
        api_id: int | None = None,
        api_hash: str | None = None,
        session: str | Path | None = None,
        profile_photos_path: str = "profile_photos",
        give_up_after_s: float = GIVE_UP_AFTER_S,
        original_columns: bool = False,
        **settings: Any,
    ) -> None:
        given = {"api_id": api_id, "api_hash": api_hash, "session": session}
        self._config = telegram_config(config_path, given, settings)
        self._original_columns = original_columns
        self._photos_path = profile_photos_path
        self._give_up_after_s = give_up_after_s
        self._connection = Connection(self._config)
        self._blocks: list[_Block] = []

    async def __aenter__(self) -> Self:
        await self._connection.acquire()
        block = _Block()
        self._blocks.append(block)
        _blocks.set((*_blocks.get(), block))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        block = self._block()
        assert block is not None
        self._blocks.remove(block)
        _blocks.set(tuple(b for b in _blocks.get() if b is not block))
        try:
            block.end(normally=error is None)
        finally:
            await self._connection.release()

    async def close(self) -> None:
        """Disconnects at once. What is being read fails with PermanentError; a later call connects again."""
        await self._connection.close()

    async def get_all_messages(
        self,
        group_id: int | str,
        checkpoint_file: str | Path | None = None,
        after_id: int = 0,
        batch_size: int = 1000,
        delay: float = 0,
        rate_limit_aware: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        progress_callback: ProgressCallback | None = None,
        *,
        limit: int | None = None,
        include_profile_photos: bool = False,
        with_progress: bool = False,
        use_adaptive_sizing: bool = False,
    ) -> AsyncGenerator[MessageFrame]:
        """All messages that are there now, oldest first, in batches of `batch_size`.

        Begins after the checkpoint's message, or after `after_id`, whichever is later; both dates are included.
        `delay` seconds pass between two batches; with `rate_limit_aware` they double (to 30) while Telegram slows us
        down, and shrink again. With `use_adaptive_sizing` a batch is as large as about two seconds allow, at most
        `batch_size`. The checkpoint file is locked until the iterator ends.
        """
        batch_size, delay = read_argument("batch_size", batch_size), read_argument("delay", delay)
        query = query_of(
            group_id=group_id, checkpoint_file=checkpoint_file, after_id=after_id, start_date=start_date,
            end_date=end_date, limit=limit,
        )  # fmt: skip
        progress = Progress(read_argument("progress_callback", progress_callback), with_progress)
        pause_s, size = delay, first_size(batch_size, adaptive=use_adaptive_sizing)
        async with (
            self._file(query.checkpoint_file) as file,
            self._reading(query, file, include_profile_photos) as reading,
        ):
            while True:
                begun = time.monotonic()
                table = await reading.next(size)
                if table is None:
                    break
                rate = reading.rate_since_last_batch()
                if rate_limit_aware:
                    pause_s = next_delay(pause_s, delay, rate.remaining)
                await progress.report(table.num_rows, reading.total)
                yield self._frame(table, reading, rate, delay=pause_s, current=progress.current)
                reading.commit()
                if use_adaptive_sizing:
                    size = next_size(size, time.monotonic() - begun, batch_size)
                if not reading.done:
                    await reading.pause(pause_s)

    @overload
    async def get_messages(
        self,
        group_id: int | str,
        after_id: int = ...,
        limit: int | None = ...,
        start_date: datetime | None = ...,
        end_date: datetime | None = ...,
        include_profile_photos: bool = ...,
        with_progress: bool = ...,
        progress_callback: ProgressCallback | None = ...,
        *,
        checkpoint_file: str | Path | None = ...,
        batch_mode: Literal[False] = ...,
        batch_size: int = ...,
        use_adaptive_sizing: bool = ...,
    ) -> MessageFrame: ...

    @overload
    async def get_messages(
        self,
        group_id: int | str,
        after_id: int = ...,
        limit: int | None = ...,
        start_date: datetime | None = ...,
        end_date: datetime | None = ...,
        include_profile_photos: bool = ...,
        with_progress: bool = ...,
        progress_callback: ProgressCallback | None = ...,
        *,
        checkpoint_file: str | Path | None = ...,
        batch_mode: Literal[True],
        batch_size: int = ...,
        use_adaptive_sizing: bool = ...,
    ) -> AsyncGenerator[MessageFrame]: ...

    async def get_messages(
        self,
        group_id: int | str,
        after_id: int = 0,
        limit: int | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        include_profile_photos: bool = False,
        with_progress: bool = False,
        progress_callback: ProgressCallback | None = None,
        *,
        checkpoint_file: str | Path | None = None,
        batch_mode: bool = False,
        batch_size: int = 1000,
        use_adaptive_sizing: bool = False,
    ) -> MessageFrame | AsyncGenerator[MessageFrame]:
        """The messages after the checkpoint or `after_id`, oldest first and at most `limit`, as one DataFrame.

        With `batch_mode` an iterator as of `get_all_messages`. Otherwise the checkpoint moves with the block's next
        call for the same file, or at the normal end of the ``async with`` block; without such a block, as this returns.
        """
        if batch_mode:
            return self.get_all_messages(
                group_id, checkpoint_file, after_id, batch_size, 0, True, start_date, end_date, progress_callback,
                limit=limit, include_profile_photos=include_profile_photos, with_progress=with_progress,
                use_adaptive_sizing=use_adaptive_sizing,
            )  # fmt: skip
        batch_size = read_argument("batch_size", batch_size)
        query = query_of(
            group_id=group_id, checkpoint_file=checkpoint_file, after_id=after_id, start_date=start_date,
            end_date=end_date, limit=limit,
        )  # fmt: skip
        progress = Progress(read_argument("progress_callback", progress_callback), with_progress)
        async with self._file(query.checkpoint_file) as file:
            async with self._reading(query, file, include_profile_photos) as reading:
                tables = []
                while (table := await reading.next(batch_size)) is not None:
                    tables.append(table)
                    await progress.report(table.num_rows, reading.total)
                whole = pa.concat_tables(tables) if tables else pa.Table.from_batches([], reading.schema)
                rate = reading.rate_since_last_batch()
                frame = self._frame(whole, reading, rate, delay=0.0, current=progress.current)
            if file is not None and tables:
                block = self._block()
                if block is None:
                    file.save(reading.checkpoint)
                else:
                    block.keep(file, reading.checkpoint)
            return frame

    def _block(self) -> _Block | None:
        """The innermost open block around the running task; that of another task where this one has none."""
        around = [block for block in _blocks.get() if block in self._blocks] or self._blocks
        return around[-1] if around else None

    @asynccontextmanager
    async def _file(self, path: Path | None) -> AsyncIterator[CheckpointFile | None]:
        """The checkpoint file, locked for the length of the block unless somebody keeps it for longer."""
        if path is None:
            yield None
            return
        file = CheckpointFile(path)
        if (block := self._block()) is not None:
            block.settle(file.path)
        await file.lock()
        try:
            yield file
        finally:
            if not any(block.keeps(file) for block in self._blocks):
                file.release()

    @asynccontextmanager
    async def _reading(self, query: Query, file: CheckpointFile | None, photos: bool) -> AsyncIterator[Reading]:
        config = self._config
        if photos and config.profile_photos_path is None:
            config = config.model_copy(update={"profile_photos_path": self._photos_path})
        async with self._connection.use() as lease:
            reading = Reading(lease, query, file, config=config, give_up_after_s=self._give_up_after_s)
            await reading.open()
            yield reading

    def _frame(self, table: pa.Table, reading: Reading, rate: Rate, *, delay: float, current: int) -> MessageFrame:
        metadata = {
            "rate_limit_remaining": rate.remaining,
            "rate_limit_waits": rate.waits,
            "response_time": reading.answer_s,
            "delay": delay,
            "current": current,
            "total": reading.total,
            "last_message_id": table["id"][-1].as_py() if table.num_rows else None,
        }
        return frame_of(table, metadata, original_columns=self._original_columns)
