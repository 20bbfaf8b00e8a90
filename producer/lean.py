"""Owns a start of the command without what its libraries would load or start that it has no use for.

For a process that is all ours: in a library's, a pandas Series would no longer be known as one, and the others' use of
numpy or of the garbage collector is not ours to change.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

#: New objects between two looks for garbage. Pages are few large objects; a start makes some 100,000 that stay.
_NEW_OBJECTS = 150_000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


class _Without:
    """A `MetaPathFinder` that knows of one package that it is not there; see PEP 302."""

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
    """To be called before anything large is imported: no threads for linear algebra, fewer looks for garbage, and
    memory that is used again."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's: it starts one for each core, and they spin
    gc.set_threshold(_NEW_OBJECTS, 20, 50)
    _keep_memory()


def _keep_memory() -> None:
    """Lets glibc's allocator keep the buffers of a page for the next page. By itself it gives each back to the kernel,
    which then has to find and clear them anew: two thirds of all page faults of a run. Two arenas, instead of eight a
    core, keep in bounds what is kept. What the environment says (``MALLOC_*``) is left as it is; see mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        for option, value in ((_M_TRIM_THRESHOLD, 2**25), (_M_MMAP_THRESHOLD, 2**25), (_M_ARENA_MAX, 2)):
            mallopt(option, value)


def structlog_without_rich() -> None:
    """Lets structlog find no rich, which it would load for tracebacks that are never shown."""
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        with _without("rich"):
            import structlog  # noqa: F401


def httpx_without_extras() -> None:
    """Lets httpx find no click, with which it would load rich for a command of its own, and no h2, which it then
    loads at the first connection that speaks HTTP/2. A missing sniffio is found missing once: httpcore looks for it
    five times a request, and each look costs as much as sending the request."""
    if not {"click", "h2", "httpx"} & set(sys.modules):
        with _without("click"), _without("h2"):
            import httpcore  # noqa: F401
            import httpx  # noqa: F401
        if find_spec("sniffio") is None:
            cast("dict[str, ModuleType | None]", sys.modules)["sniffio"] = None  # as the import system has it


def arrow_without_pandas() -> None:
    """Lets pyarrow find out now that there is no pandas, as it does at its first array: it costs up to a second."""
    if "pandas" in sys.modules or find_spec("pandas") is None:
        return
    with _without("pandas"):
        import pyarrow as pa

        pa.array([0])
