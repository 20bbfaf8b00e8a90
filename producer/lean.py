"""Owns a start of the command without what pyarrow would import only to ask whether a list is a pandas Series."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def arrow_without_pandas() -> None:
    """Lets pyarrow find out now that there is no pandas, which it does at its first array: half a second to a second.

    For a process that is all ours: in a library's, a pandas Series would no longer be known as one.
    """
    if "pandas" in sys.modules or find_spec("pandas") is None:
        return
    import pyarrow as pa

    sys.modules["pandas"] = None  # type: ignore[assignment]  # what makes an import fail at once
    try:
        pa.array([0])
    finally:
        del sys.modules["pandas"]
