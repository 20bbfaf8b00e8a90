"""How long to pause between two batches, and how large the next one should be."""

from __future__ import annotations

MIN_BATCH = 100
MAX_DELAY_S = 30.0
SHORT_OF_RATE = 10  #: percent of the full rate left, under which ``rate_limit_aware`` doubles the delay


def next_delay(delay_s: float, least_s: float, remaining: int) -> float:
    """The pause after a batch: doubled (from one second) up to 30 s while the rate is short, else nine tenths."""
    if remaining < SHORT_OF_RATE:
        return max(least_s, min(MAX_DELAY_S, max(1.0, delay_s * 2)))
    shorter = delay_s * 0.9
    return max(least_s, shorter if shorter > 0.01 else 0.0)


def first_size(most: int, *, adaptive: bool) -> int:
    """The size of the first batch."""
    return min(MIN_BATCH, most) if adaptive else most


def next_size(size: int, seconds: float, most: int) -> int:
    """Twice as many after a batch that took under a second, half as many after more than four."""
    if seconds < 1:
        return min(most, size * 2)
    return max(min(MIN_BATCH, most), size // 2) if seconds > 4 else size
