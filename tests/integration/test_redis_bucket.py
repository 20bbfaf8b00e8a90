"""Owns the claims about the token bucket that workers share in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from producer.config import RateLimitConfig
from producer.coordination.redis_bucket import RedisTokenBucket
from producer.errors import StoreUnavailableError
from producer.ratelimit import RateLimiter


@pytest.fixture
def config(redis_url: str, unique: str) -> RateLimitConfig:
    return RateLimitConfig.model_validate(
        {"type": "redis", "url": redis_url, "rate": 0.5, "burst": 10, "key": f"{unique}:tokens"}
    )


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def test_workers_together_take_no_more_than_the_bucket_holds(config: RateLimitConfig, redis: Redis) -> None:
    workers = [RedisTokenBucket(config) for _ in range(4)]
    waits = await asyncio.gather(*(workers[n % 4].acquire(1) for n in range(40)))
    assert sum(wait == 0 for wait in waits) == 10
    assert all(0 < wait <= 2 for wait in waits if wait)
    assert await redis.get(config.key) == "0"
    for worker in workers:
        await worker.close()


async def test_the_key_is_the_number_of_tokens_and_goes_when_the_bucket_is_full(
    config: RateLimitConfig, redis: Redis
) -> None:
    bucket = RedisTokenBucket(config)
    assert await bucket.acquire(7) == 0
    assert int(await redis.get(config.key) or 0) == 3
    assert 13_000 < await redis.pttl(config.key) <= 14_000  # seven tokens at one in two seconds
    await bucket.close()


async def test_tokens_come_back_at_the_configured_rate(config: RateLimitConfig, redis: Redis) -> None:
    bucket = RedisTokenBucket(config)
    assert await bucket.acquire(10) == 0
    await redis.decrby(f"{config.key}:at", 6_500_000)  # as if 6.5 s had passed
    assert await bucket.acquire(3) == 0
    wait_s = await bucket.acquire(1)
    assert 1.0 < wait_s <= 1.5  # half a second of the next two is over
    await bucket.close()


async def test_a_refused_request_takes_nothing(config: RateLimitConfig) -> None:
    bucket = RedisTokenBucket(config)
    assert await bucket.acquire(8) == 0
    assert await bucket.acquire(5) > 5
    assert await bucket.acquire(2) == 0
    await bucket.close()


async def test_a_limiter_takes_its_turns_from_the_shared_bucket(config: RateLimitConfig) -> None:
    bucket = RedisTokenBucket(config)
    limiter = RateLimiter(min_delay_s=0, bucket=bucket, adaptive=False)
    assert [await limiter.acquire(at_most_s=0) for _ in range(10)] == [0.0] * 10
    assert await limiter.acquire(at_most_s=0) > 0
    await bucket.close()


async def test_a_bucket_that_cannot_be_asked_is_a_passing_error_without_the_password(config: RateLimitConfig) -> None:
    bucket = RedisTokenBucket(config.model_copy(update={"url": type(config.url)("redis://:hunter2@127.0.0.1:1/0")}))
    with pytest.raises(StoreUnavailableError) as caught:
        await bucket.acquire(1)
    assert "hunter2" not in str(caught.value)
    await bucket.close()


async def test_a_pause_saves_no_more_than_the_bucket_holds(config: RateLimitConfig, redis: Redis) -> None:
    bucket = RedisTokenBucket(config)
    assert await bucket.acquire(1) == 0
    await redis.decrby(f"{config.key}:at", 1_000_000_000)
    assert await bucket.acquire(10) == 0
    assert await bucket.acquire(1) > 0
    await bucket.close()
