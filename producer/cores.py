"""Owns how many processor cores this process may use: for the sizes of pools of threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cores(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """The cores that the process is bound to, or fewer where a control group has a quota of CPU time, as a pod's limit
    is one: that, rounded up. See the kernel's cgroup-v2 (``cpu.max``) and sched-bwc (``cpu.cfs_quota_us``)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([bound, *_quotas(groups, membership)])))


def _quotas(groups: Path, membership: Path) -> Iterator[float]:
    """The quotas, in cores, of the process's groups and of those above them, as far as they are seen from here."""
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = groups / "cpu" if controllers else groups
        place = top / path.lstrip("/")
        for group in (place, *place.parents):
            if not group.is_relative_to(top):
                break
            words = (
                _text(group / "cpu.max") or f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
            ).split()
            if len(words) == 2 and words[0].isdecimal():  # not "max", and not -1
                yield int(words[0]) / int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
