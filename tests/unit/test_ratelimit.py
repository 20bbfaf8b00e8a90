"""The rate limiter on a clock of its own: spacing, ordered waits to the second, adapting, the shared bucket."""

from __future__ import annotations

import asyncio

import pytest

from producer.ratelimit import RateLimiter


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Bucket:
    """A shared bucket that says what it is told to say."""

    def __init__(self, *answers: float) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def acquire(self, n: int) -> float:
        self.asked += n
        return self.answers.pop(0) if self.answers else 0.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limiter(clock: Clock, **settings: object) -> RateLimiter:
    return RateLimiter(clock=clock, sleep=clock.sleep, **settings)  # type: ignore[arg-type]


async def turns(pace: RateLimiter, clock: Clock, count: int, kind: str = "") -> list[float]:
    times = []
    for _ in range(count):
        assert await pace.acquire(kind) == 0.0
        times.append(clock.now - 100.0)
    return times


async def test_turns_come_one_delay_apart(clock: Clock) -> None:
    assert await turns(limiter(clock, min_delay_s=2.0), clock, 4) == [0.0, 2.0, 4.0, 6.0]


async def test_a_pause_saves_at_most_a_burst_of_turns(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=1.0, burst=3)
    assert await turns(pace, clock, 5) == [0.0, 0.0, 0.0, 1.0, 2.0]
    clock.now += 1000
    start = clock.now - 100.0
    assert await turns(pace, clock, 4) == [start, start, start, start + 1.0]


async def test_readers_side_by_side_share_one_pace(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=1.0)
    every = await asyncio.gather(*(turns(pace, clock, 5) for _ in range(4)))
    assert clock.now - 100.0 >= 19.0
    assert sorted(t for times in every for t in times)[-1] >= 19.0


async def test_an_ordered_wait_is_kept_to_the_second(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=0.0, adaptive=False)
    pace.ordered_to_wait(17)
    assert await turns(pace, clock, 1) == [17.0]


async def test_an_ordered_wait_holds_back_only_its_kind_of_request(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=0.0, adaptive=False)
    pace.ordered_to_wait(3600, "ResolveUsername")
    assert await turns(pace, clock, 2, "GetHistory") == [0.0, 0.0]
    assert await turns(pace, clock, 1, "ResolveUsername") == [3600.0]


async def test_a_bounded_wait_gives_the_seconds_that_are_left(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=0.0, adaptive=False)
    pace.ordered_to_wait(60)
    assert await pace.acquire(at_most_s=5) == 55.0
    assert clock.now == 105.0
    assert await pace.acquire(at_most_s=100) == 0.0
    assert clock.now == 160.0


async def test_the_delay_doubles_to_the_maximum_and_shrinks_by_a_tenth_to_the_minimum(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=1.0, max_delay_s=30.0)
    seen = []
    for _ in range(6):
        pace.ordered_to_wait(1)
        seen.append(pace.delay_s)
        clock.now += 2
    assert seen == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    pace.succeeded()
    assert pace.delay_s == pytest.approx(27.0)
    for _ in range(100):
        pace.succeeded()
    assert pace.delay_s == 1.0


async def test_requests_that_meet_the_same_wait_together_slow_down_once(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=1.0)
    for _ in range(8):
        pace.ordered_to_wait(10)
    assert pace.delay_s == 2.0


async def test_without_adapting_the_delay_stays_and_waits_are_still_kept(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=1.0, adaptive=False)
    pace.ordered_to_wait(5)
    assert pace.delay_s == 1.0
    assert await turns(pace, clock, 1) == [5.0]


async def test_what_remains_of_the_rate_is_nothing_in_a_wait_and_all_when_undisturbed(clock: Clock) -> None:
    pace = limiter(clock, min_delay_s=1.0)
    assert pace.remaining == 100
    pace.ordered_to_wait(5)
    assert pace.remaining == 0
    clock.now += 5
    assert pace.remaining == 50


async def test_every_wait_is_told_with_its_seconds(clock: Clock) -> None:
    told: list[float] = []
    pace = limiter(clock, min_delay_s=2.0, on_wait=told.append)
    await turns(pace, clock, 3)
    assert told == [2.0, 2.0]


async def test_a_shared_bucket_has_the_last_word(clock: Clock) -> None:
    bucket = Bucket(4.0, 0.0)
    pace = limiter(clock, min_delay_s=0.0, adaptive=False, bucket=bucket)
    assert await turns(pace, clock, 1) == [4.0]
    assert bucket.asked == 2


async def test_a_cancelled_wait_ends_at_once_and_is_told() -> None:
    told: list[float] = []
    pace = RateLimiter(min_delay_s=0.0, on_wait=told.append)
    pace.ordered_to_wait(3600)
    waiting = asyncio.create_task(pace.acquire())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(told) == 1


@pytest.mark.parametrize("settings", [{"min_delay_s": 2.0, "max_delay_s": 1.0}, {"min_delay_s": -1.0}, {"burst": 0}])
def test_a_pace_that_cannot_be_is_refused(clock: Clock, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needed"):
        limiter(clock, **settings)
