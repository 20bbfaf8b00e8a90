"""Owns what the contract of sources is run against: a module for each registered source, with its ``CASES``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from producer.config import StreamConfig
from producer.protocols import Source


@dataclass(frozen=True)
class SourceCase:
    """One source over fixed data: `open_source` makes instances of it (not started) that see the same.

    `stream` reads the rows whose record keys are `keys`, in the order of the traversal, at least 20 of them; `empty` is
    a stream without rows.
    """

    open_source: Callable[[], Source]
    stream: StreamConfig
    keys: Sequence[tuple[Any, ...]]
    empty: StreamConfig


#: Builds a case for a test; `request` gives it fixtures.
Build = Callable[[pytest.FixtureRequest], AbstractContextManager[SourceCase]]


def cases() -> Mapping[str, Build]:
    """All cases of this folder's modules, by ``type-case``; a module is named like the source's type."""
    found: dict[str, Build] = {}
    for kind in covered():
        module = importlib.import_module(f"{__name__}.{kind}")
        found |= {f"{kind}-{name}": build for name, build in module.CASES.items()}
    return found


def covered() -> list[str]:
    """The types of sources that have cases."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
