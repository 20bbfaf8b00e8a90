"""Level 4: patterns. ``python examples/tgdata_level4.py adaptive|batches|monitor|guarded``.

``batches`` needs KAFKA_BOOTSTRAP beside the settings of level 1, and writes to the topic KAFKA_TOPIC
(``messages``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time

import pandas as pd
from aiokafka import AIOKafkaProducer
from prometheus_client import Gauge

from producer.tgdata import TgData

logger = logging.getLogger(__name__)

progress_gauge = Gauge("etl_progress", "Messages read so far")
rate_gauge = Gauge("etl_rate", "Messages a second")
completion_gauge = Gauge("etl_completion", "Percent of all messages")


def process_batch(batch: pd.DataFrame) -> None:
    """What to do with a batch."""
    print(f"{len(batch)} messages up to {batch.iloc[-1]['id']}")


async def adaptive_extraction(group_id: int) -> None:
    """Pattern 1: adaptive rate limiting."""
    tg = TgData()
    current_delay = 1.0

    async for batch in tg.get_all_messages(
        group_id=group_id,
        checkpoint_file="checkpoint.json",
        batch_size=1000,
        delay=current_delay,
        rate_limit_aware=True,
    ):
        # Adjust delay based on response time
        if batch.metadata.get("rate_limit_remaining", 100) < 10:
            current_delay = min(current_delay * 2, 30)  # Exponential backoff
        else:
            current_delay = max(current_delay * 0.9, 1)  # Gradual speedup

        process_batch(batch)


async def incremental_large_volume(group_id: int) -> None:
    """Pattern 2: batch mode for incremental extraction."""
    tg = TgData()
    topic = os.environ.get("KAFKA_TOPIC", "messages")
    async with AIOKafkaProducer(bootstrap_servers=os.environ["KAFKA_BOOTSTRAP"], acks="all") as kafka:

        async def stream_to_kafka(batch: pd.DataFrame) -> None:
            for number, text in zip(batch["id"], batch.to_json(orient="records", lines=True).splitlines(), strict=True):
                await kafka.send(topic, text.encode(), key=str(number).encode())
            await kafka.flush()

        # Use batch mode for high-volume incremental
        async for batch in await tg.get_messages(
            group_id=group_id,
            checkpoint_file="checkpoint.json",
            batch_mode=True,  # Return iterator
            batch_size=5000,
            use_adaptive_sizing=True,  # Learn from patterns
        ):
            # Stream processing
            await stream_to_kafka(batch)


class ProgressMonitor:
    """Pattern 3: progress monitoring."""

    def __init__(self) -> None:
        self.start_time = time.time()
        self.last_update = 0.0

    def progress_callback(self, current: int, total: int | None, rate: float) -> None:
        now = time.time()
        if now - self.last_update > 10:  # Update every 10 seconds
            if total:
                eta = (total - current) / rate if rate > 0 else 0
                print(
                    f"Progress: {current:,}/{total:,} ({current / total * 100:.1f}%) "
                    f"Rate: {rate:.1f} msg/s, ETA: {eta / 60:.1f} min"
                )
            else:
                print(f"Progress: {current:,} messages, Rate: {rate:.1f} msg/s")
            self.last_update = now


async def monitored_extraction(group_id: int) -> None:
    """Use with extraction."""
    tg = TgData()
    monitor = ProgressMonitor()
    async for batch in tg.get_all_messages(
        group_id=group_id, checkpoint_file="checkpoint.json", progress_callback=monitor.progress_callback
    ):
        process_batch(batch)


def detailed_progress(current: int, total: int | None, rate: float) -> None:
    """Best practice 4: monitor everything."""
    progress_gauge.set(current)
    rate_gauge.set(rate)
    if total:
        completion_gauge.set(current / total * 100)


async def guarded_extraction(group_id: int) -> None:
    """Best practice 3: handle failures; the checkpoint stays behind the last batch that was processed."""
    tg = TgData()
    try:
        async for batch in tg.get_all_messages(
            group_id=group_id, checkpoint_file="checkpoint.json", progress_callback=detailed_progress
        ):
            process_batch(batch)
    except Exception as e:
        logger.error("Extraction failed: %s", e)
        # Can resume from checkpoint


PATTERNS = {
    "adaptive": adaptive_extraction,
    "batches": incremental_large_volume,
    "monitor": monitored_extraction,
    "guarded": guarded_extraction,
}

if __name__ == "__main__":
    asyncio.run(PATTERNS[sys.argv[1]](12345))
