"""Owns the faults: what goes wrong, at which request, as data.

``Fault("flood", 20, value=3)`` answers the 20th history request with FLOOD_WAIT_3; ``every=50`` does it again 50
requests later, and so on. On the command line the same is ``flood@20/50:3``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

HISTORY = "GetHistoryRequest"

#: kind -> what happens
KINDS = {
    "flood": "FLOOD_WAIT_<value>",
    "premium": "FLOOD_PREMIUM_WAIT_<value>",
    "drop": "the connection is cut before the answer",
    "hang": "no answer, ever; the connection stays",
    "error": "an rpc_error, value like '500:INTERNAL' or '401:SESSION_REVOKED'",
    "salt": "the server changes its salt and asks for the request again",
    "empty": "an answer without any message",
    "delay": "the answer comes <value> seconds late",
    "shift": "a short last page is moved down over rows that were seen before",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong at the `at`-th request (from 1) of a kind, and then at every `every`-th after it."""

    kind: str
    at: int
    every: int = 0
    value: str | float = ""
    request: str = HISTORY
    times: int | None = None  #: with `every`: how often at most

    def hits(self, number: int) -> bool:
        """Whether the `number`-th request is struck."""
        past = number - self.at
        if past == 0 or past < 0 or not self.every:
            return past == 0
        return past % self.every == 0 and (self.times is None or past // self.every < self.times)


def parse_fault(text: str) -> Fault:
    """``KIND@AT[/EVERY][:VALUE]``; ValueError for anything else."""
    match = re.fullmatch(r"(\w+)@(\d+)(?:/(\d+))?(?::(.+))?", text)
    if match is None or match[1] not in KINDS:
        raise ValueError(f"not a fault: {text!r}; KIND@AT[/EVERY][:VALUE] with one of {', '.join(KINDS)}")
    return Fault(match[1], int(match[2]), int(match[3] or 0), match[4] or "")


@dataclass
class Script:
    """Counts requests by name and tells which fault strikes."""

    faults: list[Fault] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def next(self, request: Any) -> Fault | None:
        """Counts the request; the fault for it, if there is one."""
        name = type(request).__name__
        self.seen[name] += 1
        return next((f for f in self.faults if f.request == name and f.hits(self.seen[name])), None)
