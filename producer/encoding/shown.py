"""Single values as text for messages, also those that Python has no form for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def shown(value: pa.Scalar[Any]) -> str:
    """A value for a person: dates that Python lacks as in ISO 8601, text that is not UTF-8 with its bytes."""
    try:
        return str(value.as_py())
    except (ValueError, OverflowError, pa.ArrowException):
        pass
    kind = value.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raw = pa.array([value]).view(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
        return str(raw[0].as_py().decode(errors="backslashreplace"))
    if pa.types.is_date32(kind) or pa.types.is_timestamp(kind):
        unit = "D" if pa.types.is_date32(kind) else kind.unit
        text = str(np.array(value.value, f"datetime64[{unit}]"))
        year, _, rest = text.removeprefix("-").partition("-")
        return f"-{year.zfill(4)}-{rest}" if text.startswith("-") else text
    return f"a {kind} without a text"
