"""Owns the token bucket that several workers share in Redis, as one Lua script: nothing happens between look and take.

``rate_limit:tokens`` is the number of tokens as of the last request, a plain integer that scripts can read; the key
expires when the bucket is full again (no key: nothing is used up). ``rate_limit:tokens:at`` is up to when it has been
filled, in microseconds of Redis's own clock, which is the one that all workers have in common.
"""

from __future__ import annotations

import asyncio

from producer.config import RateLimitConfig
from producer.redis import client, redis_errors

_TIMEOUT_S = 10.0

# KEYS: tokens, filled up to. ARGV: tokens a second, size, tokens wanted. Returns the microseconds to wait.
_TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local per_us, size, wanted = tonumber(ARGV[1]) / 1000000, tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens, at = tonumber(redis.call('GET', KEYS[1])), tonumber(redis.call('GET', KEYS[2]))
if not tokens or not at or at > now then
  tokens, at = math.min(tokens or size, size), now
else
  local new = math.floor((now - at) * per_us)
  tokens, at = tokens + new, at + new / per_us
  if tokens >= size then tokens, at = size, now end
end
local wait = 0
if tokens >= wanted then tokens = tokens - wanted else wait = (wanted - tokens) / per_us - (now - at) end
local full_ms = math.max(1, math.ceil(((size - tokens) / per_us - (now - at)) / 1000))
redis.call('SET', KEYS[1], string.format('%d', tokens), 'PX', full_ms)
redis.call('SET', KEYS[2], string.format('%.0f', at), 'PX', full_ms)
return math.ceil(wait)
"""


class RedisTokenBucket:
    """See `producer.ratelimit.TokenBucket`. Every worker gives the same rate and size."""

    def __init__(self, config: RateLimitConfig) -> None:
        self._config = config
        self._redis = client(config.url.get_secret_value(), "rate_limit.url")
        self._take = self._redis.register_script(_TAKE)

    async def acquire(self, n: int) -> float:
        """Takes `n` tokens and returns 0.0, or takes none and returns the seconds until there will be as many."""
        keys = [self._config.key, f"{self._config.key}:at"]
        size = max(n, self._config.burst)  # more than a full bucket could never be had
        with redis_errors("the shared rate limit", "rate_limit.url"):
            async with asyncio.timeout(_TIMEOUT_S):
                wait_us = await self._take(keys=keys, args=[self._config.rate, size, n])
        return int(wait_us) / 1e6

    async def close(self) -> None:
        await self._redis.aclose()
