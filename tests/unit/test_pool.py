"""Connections that are lent: which are kept, which are closed."""

from __future__ import annotations

import pytest

from producer.sources.sql.pool import Lease, Pool


class Broken(Exception):
    """What the scripted driver raises."""


class Scripted:
    """A connection that says what was done to it; it breaks where it is told to."""

    def __init__(self, log: list[str], number: int) -> None:
        self._log, self._number = log, number
        self.breaks = False

    def commit(self) -> None:
        self._log.append(f"commit {self._number}")

    def rollback(self) -> None:
        if self.breaks:
            raise Broken
        self._log.append(f"rollback {self._number}")

    def cancel(self) -> None:
        self._log.append(f"cancel {self._number}")

    def close(self) -> None:
        self._log.append(f"close {self._number}")


def pool_of(log: list[str], keep: int = 8) -> Pool[Scripted]:
    made: list[Scripted] = []

    def connect() -> Scripted:
        made.append(Scripted(log, len(made)))
        return made[-1]

    return Pool(connect, Broken, keep=keep)


def test_a_connection_is_used_again() -> None:
    pool = pool_of([])
    with Lease(pool) as first:
        pass
    with Lease(pool) as second:
        pass
    assert second is first


def test_no_more_than_the_wanted_connections_are_kept() -> None:
    log: list[str] = []
    pool = pool_of(log, keep=1)
    with Lease(pool), Lease(pool):
        pass
    assert log == ["close 0"]


def test_after_an_error_a_connection_is_rolled_back_and_kept() -> None:
    log: list[str] = []
    pool = pool_of(log)
    with pytest.raises(Broken), Lease(pool) as first:
        raise Broken
    with Lease(pool) as second:
        assert second is first
    assert log == ["rollback 0"]


def test_one_that_broke_takes_the_idle_ones_with_it() -> None:
    log: list[str] = []
    pool = pool_of(log)
    with Lease(pool), Lease(pool):
        pass
    with pytest.raises(Broken), Lease(pool) as broken:
        broken.breaks = True
        raise Broken
    assert sorted(log) == ["close 0", "close 1"]


def test_one_that_was_told_to_stop_is_not_used_again() -> None:
    log: list[str] = []
    pool = pool_of(log)
    lease = Lease(pool)
    with lease:
        lease.stop()
    assert log == ["cancel 0", "close 0"]


def test_what_is_lent_when_the_pool_is_closed_is_closed_when_it_comes_back() -> None:
    log: list[str] = []
    pool = pool_of(log)
    with Lease(pool):
        pool.close()
        assert log == []
    assert log == ["close 0"]
