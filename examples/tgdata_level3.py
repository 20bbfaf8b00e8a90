"""Level 3: several workers, locks and checkpoints in Redis. ``WORKER_ID=1 python examples/tgdata_level3.py``.

Needs REDIS_URL beside the settings of level 1. A session may be used from one address only: give each worker its own.
"""

from __future__ import annotations

import asyncio
import os
import time

import pandas as pd
from redis.asyncio import Redis

from producer.tgdata import TgData


class DistributedETL:
    """One worker of several."""

    def __init__(self, redis: Redis) -> None:
        self.tg = TgData()
        self.redis = redis
        self.worker_id = os.environ.get("WORKER_ID", "1")

    async def distributed_backfill(self, group_id: int) -> None:
        """All of the history, unless another worker is at it."""
        # Distributed locking to prevent duplicate work
        lock_key = f"etl:lock:{group_id}"
        checkpoint_key = f"etl:checkpoint:{group_id}"

        async with self.redis.lock(lock_key, timeout=3600):
            # Get checkpoint from Redis
            checkpoint = await self.redis.hgetall(checkpoint_key)
            start_id = int(checkpoint.get("last_id", 0))

            # Extract with rate limit coordination
            async for batch in self.tg.get_all_messages(
                group_id=group_id,
                after_id=start_id,
                batch_size=2000,
                rate_limit_aware=True,
                progress_callback=lambda c, t, r: self.publish_progress(group_id, c, t, r),
            ):
                # Check global rate limit
                if await self.is_rate_limited():
                    await asyncio.sleep(await self.get_backoff_time())

                # Process batch
                await self.process_batch(batch)

                # Update checkpoint in Redis
                await self.redis.hset(
                    checkpoint_key,
                    mapping={"last_id": int(batch.iloc[-1]["id"]), "worker": self.worker_id, "timestamp": time.time()},
                )

    async def is_rate_limited(self) -> bool:
        """Whether the tokens that all workers share are running out."""
        tokens = await self.redis.get("rate_limit:tokens")
        return tokens is not None and int(tokens) < 5

    async def get_backoff_time(self) -> float:
        """Until the shared tokens are filled up again."""
        left_ms = await self.redis.pttl("rate_limit:tokens")
        return max(0.1, left_ms / 1000)

    async def publish_progress(self, group_id: int, current: int, total: int | None, rate: float) -> None:
        """For a dashboard."""
        await self.redis.publish(f"etl:progress:{group_id}", f"{current}/{total} {rate:.0f}/s")

    async def process_batch(self, batch: pd.DataFrame) -> None:
        """Here: into a Redis stream's set of ids."""
        await self.redis.sadd("etl:ids", *(int(number) for number in batch["id"]))


async def main() -> None:
    async with Redis.from_url(os.environ["REDIS_URL"], decode_responses=True) as redis:
        await DistributedETL(redis).distributed_backfill(12345)


if __name__ == "__main__":
    asyncio.run(main())
