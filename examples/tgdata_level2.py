"""Level 2: checkpoints in PostgreSQL. ``python examples/tgdata_level2.py backfill|incremental``.

Rows and checkpoint are written in one transaction. Needs DATABASE_URL beside the settings of level 1; makes its
tables itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import asyncpg
import pandas as pd

from producer.tgdata import TgData

SCHEMA = """
CREATE TABLE IF NOT EXISTS etl_checkpoints (
    group_id BIGINT PRIMARY KEY,
    last_message_id BIGINT NOT NULL,
    total_processed BIGINT DEFAULT 0,
    last_updated TIMESTAMP DEFAULT NOW(),
    created_at TIMESTAMP DEFAULT NOW()
);
CREATE INDEX IF NOT EXISTS idx_checkpoints_updated ON etl_checkpoints(last_updated);
CREATE TABLE IF NOT EXISTS messages (
    group_id BIGINT,
    id BIGINT,
    sent_at TIMESTAMPTZ,
    text TEXT,
    PRIMARY KEY (group_id, id)
);
"""


class DatabaseETL:
    """Backfill and increments of a chat into one database."""

    def __init__(self, db: asyncpg.Connection) -> None:
        self.tg = TgData()
        self.db = db

    async def backfill_with_db_checkpoint(self, group_id: int) -> None:
        """All of the history after the checkpoint, batch by batch."""
        # Load checkpoint from database
        checkpoint = await self.db.fetchrow(
            "SELECT last_message_id, total_processed FROM etl_checkpoints WHERE group_id = $1", group_id
        )
        start_id = checkpoint["last_message_id"] if checkpoint else 0

        # Use TgData with custom checkpoint
        async for batch in self.tg.get_all_messages(
            group_id=group_id,
            after_id=start_id,  # Use database checkpoint
            batch_size=1000,
            delay=1.0,
            rate_limit_aware=True,  # Auto-adjust delays
            progress_callback=self.report_progress,
        ):
            # Process batch
            transformed = self.transform(group_id, batch)

            # Rows and checkpoint together: either both are there after a crash, or neither
            async with self.db.transaction():
                await self.load_to_warehouse(transformed)
                await self.db.execute(
                    """
                    INSERT INTO etl_checkpoints
                    (group_id, last_message_id, total_processed, last_updated)
                    VALUES ($1, $2, $3, NOW())
                    ON CONFLICT (group_id) DO UPDATE SET
                        last_message_id = $2,
                        total_processed = etl_checkpoints.total_processed + $3,
                        last_updated = NOW()
                    """,
                    group_id,
                    batch.iloc[-1]["id"],
                    len(batch),
                )

    async def incremental_with_db(self, group_id: int) -> None:
        """What is new since the last run, at once."""
        # Get last position from database
        last_id = (
            await self.db.fetchval("SELECT last_message_id FROM etl_checkpoints WHERE group_id = $1", group_id) or 0
        )

        # Fetch new messages
        new_messages = await self.tg.get_messages(
            group_id=group_id,
            after_id=last_id,  # Use database checkpoint
            batch_mode=False,  # Get all at once for incremental
        )

        if not new_messages.empty:
            # Process and update checkpoint
            async with self.db.transaction():
                await self.load_to_warehouse(self.transform(group_id, new_messages))
                await self.db.execute(
                    "UPDATE etl_checkpoints SET last_message_id = $1 WHERE group_id = $2",
                    new_messages.iloc[-1]["id"],
                    group_id,
                )

    def transform(self, group_id: int, batch: pd.DataFrame) -> list[tuple[Any, ...]]:
        """The columns of the warehouse."""
        texts = batch["text"].astype(object).where(batch["text"].notna(), None)
        return [(group_id, *row) for row in zip(batch["id"], batch["date"], texts, strict=True)]

    async def load_to_warehouse(self, rows: list[tuple[Any, ...]]) -> None:
        """Repeated rows are the same rows."""
        await self.db.executemany("INSERT INTO messages VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING", rows)

    def report_progress(self, current: int, total: int | None, rate: float) -> None:
        """Called after each batch."""
        print(f"{current} of {total} at {rate:.0f} a second")


async def main() -> None:
    db = await asyncpg.connect(os.environ["DATABASE_URL"])
    await db.execute(SCHEMA)
    etl = DatabaseETL(db)
    await {"backfill": etl.backfill_with_db_checkpoint, "incremental": etl.incremental_with_db}[sys.argv[1]](12345)
    await db.close()


if __name__ == "__main__":
    asyncio.run(main())
