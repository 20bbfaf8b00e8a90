"""Owns reflection of PostgreSQL: tables, columns, types and unique indexes from pg_catalog."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from producer.errors import ConfigError
from producer.sources.sql import postgres_types
from producer.sources.sql.names import nearest_table, quote
from producer.sources.sql.postgres_types import TypeInfo
from producer.sources.sql.table import Column, Table

#: Runs SQL with ``$1``, ``$2``... and gives the rows.
Run = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_TABLE = """
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind IN ('v', 'm', 'f'),
       coalesce(obj_description(c.oid, 'pg_class'), ''), c.relhassubclass AND c.relkind <> 'p'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_NAMES = """
SELECT n.nspname::text, c.relname::text, pg_catalog.pg_table_is_visible(c.oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname NOT LIKE 'pg_toast%' LIMIT 10000
"""
_COLUMNS = """
SELECT a.attname::text, a.attnotnull, coalesce(col_description(a.attrelid, a.attnum), ''),
       format_type(a.atttypid, a.atttypmod), a.attndims::int4, a.atttypid::int8, a.atttypmod
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
# With -1, because format_type(..., NULL) and regtype write char(n) and bit(n) as types of length one: they cut values.
# A true array has variable length and is in category A; point, name and others have an element type without being one.
_TYPES = """
WITH RECURSIVE used(oid) AS (
  SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
  UNION
  SELECT x.oid FROM used JOIN pg_catalog.pg_type p ON p.oid = used.oid,
    LATERAL (VALUES (p.typbasetype), (p.typelem)) x(oid)
  WHERE x.oid <> 0
)
SELECT p.oid::int8, p.typname::text, p.typtype::text, p.typbasetype::int8, p.typtypmod, p.typnotnull, p.typndims::int4,
       CASE WHEN p.typcategory = 'A' AND p.typlen = -1 AND p.typname NOT LIKE '%vector' THEN p.typelem::int8 ELSE 0 END,
       n.nspname = 'pg_catalog', format_type(p.oid, -1),
       coalesce((SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e
                 WHERE e.enumtypid = p.oid), '{}')
FROM used JOIN pg_catalog.pg_type p ON p.oid = used.oid JOIN pg_catalog.pg_namespace n ON n.oid = p.typnamespace
"""
# An index of another collation than the column's proves nothing where that takes texts for equal that differ.
_UNIQUE = """
SELECT array_agg(a.attname::text ORDER BY k.place)
FROM pg_catalog.pg_index i,
  unnest(i.indkey::int2[], i.indcollation::oid[]) WITH ORDINALITY k(number, collated, place), pg_catalog.pg_attribute a
  LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
  AND i.indexprs IS NULL AND k.place <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = k.number
GROUP BY i.indexrelid, i.indisprimary, i.indnkeyatts
HAVING bool_and(a.attnotnull AND (k.collated = a.attcollation OR coalesce(c.collisdeterministic, true)))
ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid
"""
_PARAMETERS = """
SELECT coalesce(array_agg(format_type(p.type, -1) ORDER BY p.place), '{}')
FROM pg_prepared_statements s, unnest(s.parameter_types) WITH ORDINALITY p(type, place)
WHERE s.name = 'producer_probe'
"""
# The columns and the enums of the table with the name $1, each as a number.
_SHAPE = """
SELECT sum(hashtextextended(concat_ws('/', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull), 0))::text
FROM pg_catalog.pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
"""
_ENUM_SHAPE = """
SELECT sum(hashtextextended(concat_ws('/', e.enumtypid, e.enumlabel, e.enumsortorder), 0))::text
FROM pg_catalog.pg_enum e JOIN pg_catalog.pg_attribute a ON e.enumtypid = a.atttypid WHERE a.attrelid = to_regclass($1)
"""


def reflect(run: Run, name: str, path: tuple[str, ...], decimal: str | None) -> Table:
    """The table `path`, as `name` wrote it; one name alone is looked up along the search path."""
    found = run(_TABLE, (".".join(quote(part) for part in path),))
    if not found:
        raise _no_such_table(run, name, path)
    oid, schema, table, is_view, comment, inherited = found[0]
    source = f"{quote(schema)}.{quote(table)}"
    ((shape, enums),) = run(f"SELECT ({_SHAPE}), ({_ENUM_SHAPE})", (source,))  # first: what changes later is seen
    types = {row[0]: row for row in run(_TYPES, (oid,))}
    columns = tuple(_column(row, types, decimal) for row in run(_COLUMNS, (oid,)))
    unique = tuple(tuple(row[0]) for row in run(_UNIQUE, (oid,)))
    return Table(
        (schema, table),
        source,
        columns,
        unique,
        comment,
        is_view,
        inherited=inherited,
        shape=f"{shape}/{enums}" if _has_enum(columns) else shape,
    )


def shape_query(table: Table) -> str:
    """An expression of the table's present shape; ``$1`` is its quoted name."""
    return f"({_SHAPE}) || '/' || ({_ENUM_SHAPE})" if _has_enum(table.columns) else f"({_SHAPE})"


def _has_enum(columns: Sequence[Column]) -> bool:
    return any(b"avro.enum" in (column.field.metadata or {}) for column in columns)


def _column(row: tuple[Any, ...], types: Mapping[int, tuple[Any, ...]], decimal: str | None) -> Column:
    name, not_null, comment, shown, dimensions, oid, modifier = row
    info = _type(oid, modifier, dimensions, types)
    while types[oid][3]:  # a domain may forbid nulls for the column
        not_null = not_null or types[oid][5]
        oid = types[oid][3]
    return postgres_types.column(name, info, shown, nullable=not not_null, comment=comment, decimal=decimal)


def _type(oid: int, modifier: int, dimensions: int, types: Mapping[int, tuple[Any, ...]]) -> TypeInfo:
    _, name, kind, base, base_modifier, _, base_dimensions, item, builtin, sql, labels = types[oid]
    if base:
        return _type(base, base_modifier, base_dimensions, types)
    element = _type(item, modifier, 0, types) if item else None
    return TypeInfo(name, sql, kind, modifier, builtin, tuple(labels), element, dimensions)


def _no_such_table(run: Run, name: str, path: tuple[str, ...]) -> ConfigError:
    choices: dict[str, str] = {}
    for schema, table, visible in run(_NAMES, ()):
        written = [part if re.fullmatch("[a-z_][a-z0-9_]*", part) else quote(part) for part in (schema, table)]
        if visible and len(path) == 1:
            choices[table] = written[1]
        else:
            choices[f"{schema}.{table}"] = ".".join(written)
    return ConfigError(f"table {name!r} is not there", hint=nearest_table(".".join(path), choices.values()))


def parameter_types(run: Run, sql: str, names: Sequence[str]) -> dict[str, str]:
    """The types that PostgreSQL infers for ``$1``... of `sql`, as it would for a prepared statement, by name."""
    run(f"PREPARE producer_probe AS {sql}", ())
    types = run(_PARAMETERS, ())[0][0]
    run("DEALLOCATE producer_probe", ())
    return dict(zip(names, types, strict=True))
