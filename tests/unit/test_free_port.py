"""Owns the claim that the broker's two ports are two."""

from __future__ import annotations

import random

import pytest

from producer.embedded import free_port


def test_a_port_that_is_spoken_for_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_port(), free_port()
    second = second if second != first else free_port(first)
    drawn = iter([first, first, second])
    monkeypatch.setattr(random, "randrange", lambda *_: next(drawn))
    assert free_port(besides=first) == second
