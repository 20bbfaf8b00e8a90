"""Owns what is told of a table that has changed: which columns came, went, and are of another type."""

from __future__ import annotations

import pyarrow as pa


def differences(before: pa.Schema, after: pa.Schema) -> dict[str, list[str]]:
    """``added``, ``dropped`` and ``changed`` columns, those that there are, as a log shows them."""
    old, new = ({field.name: field for field in schema} for schema in (before, after))
    found = {
        "added": [name for name in new if name not in old],
        "dropped": [name for name in old if name not in new],
        "changed": [
            f"{name}: {old[name].type} to {new[name].type}" if old[name].type != new[name].type else name
            for name in new
            if name in old and not new[name].equals(old[name], check_metadata=True)
        ],
    }
    return {kind: names for kind, names in found.items() if names}
