"""Owns the question whether rows have the same key where no unique index answers it: of such rows, those after a page's
edge would be lost.

Arrow answers it for types whose values are equal there exactly when they are to the database. A text's collation may
take others for the same (case, accents, blanks at the end), a number kept as text its other digits, a float NaN: there
the database is asked about the rows at the page's edge.
"""

from __future__ import annotations

import pyarrow as pa

from producer.errors import RepeatedKeyError
from producer.model import KeyScalar
from producer.sources.sql import keyset
from producer.sources.sql.keyset import Selection
from producer.sources.sql.table import Database, Session


def seen_in_arrow(selection: Selection) -> bool:
    """Whether keys that are the same to the database are so in Arrow too."""
    return all(_is_exact(column.field) for column in selection.order_columns)


def _is_exact(field: pa.Field) -> bool:
    kind = field.type
    exact = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_temporal, pa.types.is_binary)
    return any(test(kind) for test in exact) or (field.metadata or {}).get(b"avro.logical") == b"uuid"


async def refuse(
    session: Session,
    database: Database,
    selection: Selection,
    *,
    key: tuple[KeyScalar, ...] | None = None,
    skip: int = 0,
) -> None:
    """RepeatedKeyError where the database finds several rows with `key`, or that the two rows after the first `skip` of
    the whole order have the same."""
    if not await session.keys(keyset.tied_query(selection, key, skip, mark=database.mark)):
        return
    if key is not None:
        raise repeated(selection, key)
    raise _error(selection, f"rows {skip + 1} and {skip + 2} have the same key ({', '.join(selection.order_names)})")


def repeated(selection: Selection, key: tuple[KeyScalar, ...]) -> RepeatedKeyError:
    """The error about several rows with `key`."""
    names, values = ", ".join(selection.order_names), ", ".join(map(str, key))
    return _error(selection, f"several rows have the key ({names}) = ({values})")


def _error(selection: Selection, what: str) -> RepeatedKeyError:
    return RepeatedKeyError(
        f"table {'.'.join(selection.table.path)!r}: {what}, as the database compares them",
        hint="name columns in key that tell all rows apart",
    )
