"""Level 1: a chat into a CSV file, with a checkpoint file. ``python examples/tgdata_level1.py backfill|incremental``.

Needs TELEGRAM_API_ID, TELEGRAM_API_HASH and TELEGRAM_SESSION (``producer telegram login``), and pandas.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd

from producer.tgdata import TgData


def save_to_csv(batch: pd.DataFrame, path: str, append: bool) -> None:
    """Adds the batch to the file; the header only once."""
    batch.to_csv(path, mode="a" if append else "w", header=not (append and Path(path).exists()), index=False)


def process_messages(messages: pd.DataFrame) -> None:
    """What to do with new messages."""
    for row in messages.itertuples():
        print(row.id, row.sender_name, row.text)


async def simple_backfill() -> None:
    """All of the history; started again, it goes on where it was."""
    tg = TgData()

    # Extract with automatic file checkpointing
    async for batch in tg.get_all_messages(
        group_id=12345,
        checkpoint_file="checkpoint.json",
        batch_size=500,
        delay=2.0,  # Fixed 2-second delay
        start_date=datetime(2024, 1, 1),  # noqa: DTZ001  a date without a zone is UTC
        progress_callback=lambda cur, tot, rate: print(f"{cur} of {tot} messages at {rate:.1f} msg/s"),
    ):
        # Process each batch
        save_to_csv(batch, "messages.csv", append=True)


async def simple_incremental() -> None:
    """What is new since the last run."""
    # The checkpoint moves when the block ends well: what fails in processing is there again the next time
    async with TgData() as tg:
        new_messages = await tg.get_messages(group_id=12345, checkpoint_file="checkpoint.json")

        if not new_messages.empty:
            print(f"Found {len(new_messages)} new messages")
            process_messages(new_messages)


if __name__ == "__main__":
    asyncio.run({"backfill": simple_backfill, "incremental": simple_incremental}[sys.argv[1]]())
