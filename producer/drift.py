"""Owns what is told of a table that has changed: which columns came, went and changed; and how often it may."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from producer.errors import PermanentError, SchemaChangedError

MAX_IN_A_ROW = 10
FIRST_WAIT_S = 0.1
MAX_WAIT_S = 5.0


@dataclass(slots=True)
class Changes:
    """How often in a row a table has changed before a page of it was sent, or found empty. One that is another table at
    each look is looked at again ever more slowly, and not for ever."""

    in_a_row: int = 0

    def settled(self) -> None:
        """A page has been sent, or there was none."""
        self.in_a_row = 0

    def wait_s(self, error: SchemaChangedError) -> float:
        """How long to wait before the next look; PermanentError where it was the last."""
        self.in_a_row += 1
        if self.in_a_row >= MAX_IN_A_ROW:
            raise PermanentError(
                f"{error.message} {self.in_a_row} times in a row, before a page of it could be sent",
                hint="end what alters it again and again, then start the stream: its checkpoint stays",
            )
        return min(FIRST_WAIT_S * 2.0 ** (self.in_a_row - 2), MAX_WAIT_S) if self.in_a_row > 1 else 0.0


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
