"""Owns a start of the command without what pyarrow would import only to ask whether a list is a pandas Series."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


class _NoPandas(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("not wanted here", name=fullname)
        return None


def arrow_without_pandas() -> None:
    """Lets pyarrow find out now that there is no pandas, which it does at its first array: half a second to a second.

    For a process that is all ours: in a library's, a pandas Series would no longer be known as one.
    """
    if "pandas" in sys.modules or find_spec("pandas") is None:
        return
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
