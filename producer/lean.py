"""Owns a start of the command without what its libraries would load or start that it has no use for.

For a process that is all ours: in a library's, a pandas Series would no longer be known as one, and the others' use of
numpy or of the garbage collector is not ours to change.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

#: New objects between two looks for garbage. Pages are few large objects; a start makes some 100,000 that stay.
_NEW_OBJECTS = 150_000


class _Without(MetaPathFinder):
    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self._name:
            raise ModuleNotFoundError("not wanted here", name=fullname)
        return None


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Modules that are imported meanwhile do not find the package `name`."""
    finder = _Without(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def lean_process() -> None:
    """To be called before anything large is imported: no threads for linear algebra, fewer looks for garbage."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's: it starts one for each core, and they spin
    gc.set_threshold(_NEW_OBJECTS, 20, 50)


def structlog_without_rich() -> None:
    """Lets structlog find no rich, which it would load for tracebacks that are never shown."""
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        with _without("rich"):
            import structlog  # noqa: F401


def arrow_without_pandas() -> None:
    """Lets pyarrow find out now that there is no pandas, as it does at its first array: it costs up to a second."""
    if "pandas" in sys.modules or find_spec("pandas") is None:
        return
    with _without("pandas"):
        import pyarrow as pa

        pa.array([0])
