"""Owns reflection of PostgreSQL: tables, columns, types and unique indexes from pg_catalog."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from producer.errors import ConfigError
from producer.postgres import CATALOG_PATH, pin
from producer.sources.sql import postgres_types
from producer.sources.sql.names import nearest_table, quote
from producer.sources.sql.postgres_keys import KeyType, as_key
from producer.sources.sql.postgres_types import TypeInfo
from producer.sources.sql.table import Column, Table

#: Runs SQL with ``$1``, ``$2``... and gives the rows.
Run = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

#: Along the role's own search path, which is why all else has its schema.
_TABLE = """
SELECT c.oid::pg_catalog.int8, n.nspname::pg_catalog.text, c.relname::pg_catalog.text,
       c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['v', 'm', 'f']::pg_catalog."char"[]),
       COALESCE(pg_catalog.obj_description(c.oid, 'pg_class'), ''),
       c.relhassubclass AND c.relkind OPERATOR(pg_catalog.<>) 'p',
       CASE WHEN c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p']::pg_catalog."char"[])
            THEN pg_catalog.has_column_privilege(c.oid, 'xmin', 'SELECT') ELSE true END,
       pg_catalog.row_security_active(c.oid), pg_catalog.quote_ident(current_user)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($1)
  AND c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p', 'v', 'm', 'f']::pg_catalog."char"[])
"""
_NAMES = """
SELECT n.nspname::text, c.relname::text, pg_catalog.pg_table_is_visible(c.oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname NOT LIKE 'pg_toast%' LIMIT 10000
"""
# The columns of the table, or of one below it (partitions, INHERITS), for which NOT NULL is not declared or enforced.
# A foreign table's constraints are a promise, and one that is NOT VALID says nothing of the rows that are there. What a
# domain says does not count: its columns are null after an outer join, and where an empty subquery was inserted.
_LOOSE = """
WITH RECURSIVE tree(oid) AS (
  SELECT $1::oid
  UNION
  SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
)
SELECT coalesce(array_agg(DISTINCT a.attname::text) FILTER (WHERE c.relkind = 'f' OR NOT a.attnotnull OR EXISTS (
         SELECT FROM pg_catalog.pg_constraint n
         WHERE n.conrelid = c.oid AND n.contype = 'n' AND NOT n.convalidated AND a.attnum = ANY (n.conkey)
       )), '{}'), coalesce(bool_or(c.relkind = 'f'), false)
FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
"""
_COLUMNS = """
SELECT a.attname::text, coalesce(col_description(a.attrelid, a.attnum), ''),
       format_type(a.atttypid, a.atttypmod), a.attndims::int4, a.atttypid::int8, a.atttypmod,
       has_column_privilege(a.attrelid, a.attnum, 'SELECT'), a.attcollation <> 0 OR y.typcollation = 0
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
# With -1, because format_type(..., NULL) and regtype write char(n) and bit(n) as types of length one: they cut values.
# A true array is the one that its element type names; point, int2vector and others have an element type without that.
# The operators are those by which ORDER BY sorts: of the default operator class for btree (403) of the type itself, of
# one that it is the same as in binary form, or of all arrays, enums, ranges, multiranges and composite types.
_TYPES = """
WITH RECURSIVE used(oid) AS (
  SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
  UNION
  SELECT x.oid FROM used JOIN pg_catalog.pg_type p ON p.oid = used.oid,
    LATERAL (
      VALUES (p.typbasetype), (p.typelem)
      UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = p.oid
      UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
      WHERE a.attrelid = p.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) x(oid)
  WHERE x.oid <> 0
)
SELECT p.oid::int8, p.typname::text, p.typtype::text, p.typbasetype::int8, p.typtypmod, p.typndims::int4,
       CASE WHEN item.typarray = p.oid THEN p.typelem::int8 ELSE 0 END,
       n.nspname = 'pg_catalog', format_type(p.oid, -1),
       coalesce((SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e
                 WHERE e.enumtypid = p.oid), '{}'),
       coalesce((
         SELECT array_agg(format('OPERATOR(%I.%s)', s.nspname, o.oprname) ORDER BY m.amopstrategy)
                || max(c.opcfamily::text)
         FROM (
           SELECT d.opcfamily, d.opcintype FROM pg_catalog.pg_opclass d JOIN pg_catalog.pg_type i ON i.oid = d.opcintype
           WHERE d.opcmethod = 403 AND d.opcdefault AND (
             d.opcintype = p.oid
             OR d.opcintype = CASE WHEN p.typcategory = 'A' AND p.typlen = -1 AND p.typelem <> 0 THEN 2277
                                   WHEN p.typtype = 'e' THEN 3500 WHEN p.typtype = 'r' THEN 3831
                                   WHEN p.typtype = 'm' THEN 4537 WHEN p.typtype = 'c' THEN 2249 END
             OR EXISTS (SELECT FROM pg_catalog.pg_cast b WHERE b.castsource = p.oid AND b.casttarget = d.opcintype
                        AND b.castmethod = 'b' AND b.castcontext = 'i'))
           ORDER BY d.opcintype = p.oid DESC, i.typispreferred DESC LIMIT 1
         ) c
         JOIN pg_catalog.pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype
           AND m.amoprighttype = c.opcintype AND m.amoppurpose = 's'
         JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
         HAVING count(*) > 0
       ), '{}'),
       coalesce((SELECT array_agg(a.atttypid::int8) FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid = p.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '{}')
       || coalesce((SELECT array_agg(r.rngsubtype::int8) FROM pg_catalog.pg_range r WHERE r.rngtypid = p.oid), '{}')
FROM used JOIN pg_catalog.pg_type p ON p.oid = used.oid JOIN pg_catalog.pg_namespace n ON n.oid = p.typnamespace
  LEFT JOIN pg_catalog.pg_type item ON item.oid = p.typelem
"""
# An index of another collation than the column's proves nothing where that takes texts for equal that differ.
_UNIQUE = """
SELECT array_agg(a.attname::text ORDER BY k.place), array_agg(d.opcfamily::int8 ORDER BY k.place)
FROM pg_catalog.pg_index i,
  unnest(i.indkey::int2[], i.indcollation::oid[], i.indclass::oid[])
    WITH ORDINALITY k(number, collated, class, place), pg_catalog.pg_attribute a
  LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation, pg_catalog.pg_opclass d
WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
  AND i.indexprs IS NULL AND k.place <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = k.number
  AND d.oid = k.class
GROUP BY i.indexrelid, i.indisprimary, i.indnkeyatts
HAVING bool_and(a.attnotnull AND (k.collated = a.attcollation OR coalesce(c.collisdeterministic, true)))
ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid
"""
_KIND, _BASE, _ITEM, _BUILTIN, _PARTS = 2, 3, 6, 7, 11  # in a row of _TYPES
#: text_pattern_ops (of varchar as well) and bpchar_pattern_ops.
_TEXT_PATTERN, _BPCHAR_PATTERN = 2095, 2097
_PARAMETERS = """
SELECT coalesce(array_agg(format_type(p.type, -1) ORDER BY p.place), '{}')
FROM pg_prepared_statements s, unnest(s.parameter_types) WITH ORDINALITY p(type, place)
WHERE s.name = 'producer_probe'
"""
# The columns of the table with the name $1 as a number; and some types, with the labels of enums.
# These are read under the role's own search path, so all names have their schema.
_SHAPE = """
SELECT COALESCE(pg_catalog.sum(pg_catalog.hashtextextended(
  pg_catalog.concat_ws('/', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull), 0)), 0)
FROM pg_catalog.pg_attribute a WHERE a.attrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($1)
  AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
"""
_TYPES_SHAPE = """
SELECT COALESCE(pg_catalog.sum(pg_catalog.hashtextextended(pg_catalog.concat_ws(
  '/', p.oid, p.typtype, p.typbasetype, p.typtypmod, e.enumlabel, e.enumsortorder), 0)), 0)
FROM pg_catalog.pg_type p LEFT JOIN pg_catalog.pg_enum e ON e.enumtypid OPERATOR(pg_catalog.=) p.oid
WHERE p.oid OPERATOR(pg_catalog.=) ANY ('{%s}'::pg_catalog.oid[])
"""
#: Columns whose numbers an ascending sequence hands out, whether it belongs to the column or only fills it.
_COUNTERS = """
SELECT a.attname::text, d.objid::int8
FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
  JOIN pg_catalog.pg_sequence s ON s.seqrelid = d.objid AND s.seqincrement > 0
WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
  AND d.refobjid = $1::oid
UNION
SELECT a.attname::text, d.refobjid::int8
FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid
  JOIN pg_catalog.pg_sequence s ON s.seqrelid = d.refobjid AND s.seqincrement > 0
WHERE f.adrelid = $1::oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
"""
# Of each storage its oid, with a text that changes when all rows are written anew. Read under the role's search path.
_STORED = "pg_catalog.concat(p.relfilenode, p.relpersistence, p.relam)"
_GENERATION = f"""
(SELECT pg_catalog.json_build_object(
  'horizon', pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8,
  'parts', CASE WHEN c.relhassubclass OR c.relkind OPERATOR(pg_catalog.=) 'p' THEN (
    WITH RECURSIVE tree(oid) AS (
      SELECT c.oid UNION
      SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.oid
    ) SELECT pg_catalog.json_object_agg(p.oid::pg_catalog.text, {_STORED})
    FROM tree JOIN pg_catalog.pg_class p ON p.oid OPERATOR(pg_catalog.=) tree.oid
    WHERE p.relkind OPERATOR(pg_catalog.<>) 'p'
  ) ELSE (
    SELECT pg_catalog.json_build_object(p.oid::pg_catalog.text, {_STORED})
    FROM pg_catalog.pg_class p WHERE p.oid OPERATOR(pg_catalog.=) c.oid
  ) END,
  'last', pg_catalog.json_build_object({{last}})
)::pg_catalog.text FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($1))
"""


def reflect(run: Run, name: str, path: tuple[str, ...], decimal: str | None) -> Table:
    """The table `path`, as `name` wrote it; one name alone is looked up along the role's search path. From then on
    the settings of the transaction are pinned."""
    found = run(_TABLE, (".".join(quote(part) for part in path),))
    if not found:
        raise _no_such_table(run, name, path)
    oid, schema, table, is_view, comment, inherited, tracked, filtered, user = found[0]
    source = f"{quote(schema)}.{quote(table)}"
    # Compiling the queries of the catalog would take a hundred times as long as running them.
    run(f"SELECT {pin(CATALOG_PATH)}, pg_catalog.set_config('jit', 'off', true)", ())
    shape, types = _shape_and_types(run, source, oid)  # first: what changes from here on is seen
    ((loose, partly_foreign),) = run(_LOOSE, (oid,))

    def grant(column: str) -> str:
        return f"GRANT SELECT ({column}) ON {source} TO {user}"

    rows = run(_COLUMNS, (oid,))
    keys = {row[0]: _key_type(row) for row in types.values()}
    columns = tuple(_column(row, types, keys, loose, decimal, grant) for row in rows)
    bases = {row[0]: _base(row[4], types) for row in rows}
    unique = tuple(
        names
        for names, families in run(_UNIQUE, (oid,))
        if all(_proves(family, keys[bases[name]]) for name, family in zip(names, families, strict=True))
    )
    return Table(
        (schema, table),
        source,
        columns,
        tuple(tuple(names) for names in unique if not set(names) & set(loose)),
        comment,
        is_view or partly_foreign,
        inherited=inherited,
        shape=shape,
        untracked="" if tracked else grant("xmin"),
        filtered=filtered,
        generation="" if is_view or partly_foreign else _generation(run(_COUNTERS, (oid,))),
    )


def _generation(counters: Sequence[tuple[Any, ...]]) -> str:
    """The expression; a counter that this user may not read, or that was never asked, is null."""
    last = (
        f"{_literal(column)}::pg_catalog.text, "
        f"CASE WHEN pg_catalog.has_sequence_privilege({oid:d}::pg_catalog.oid, 'SELECT, USAGE') "
        f"THEN pg_catalog.pg_sequence_last_value({oid:d}::pg_catalog.oid::pg_catalog.regclass) END"
        for column, oid in counters
    )
    return _GENERATION.format(last=", ".join(last))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _shape_and_types(run: Run, source: str, oid: int) -> tuple[str, dict[int, tuple[Any, ...]]]:
    """The table's shape, and after it the types that its columns are made of; the shape knows those that may change."""
    made: set[str] = set()
    while True:
        ((shape,),) = run(f"SELECT {_shape(sorted(made))}", (source,))
        types = {row[0]: row for row in run(_TYPES, (oid,))}
        found = {str(number) for number, row in types.items() if not row[_BUILTIN]}
        if found <= made:
            return shape, types
        made = found


def _shape(types: Sequence[str]) -> str:
    """An expression of the columns, and of the types with these oids, which it names at its end."""
    columns = f"({_SHAPE})::pg_catalog.text"
    listed = ",".join(types)
    return f"pg_catalog.concat({columns}, '/', ({_TYPES_SHAPE % listed}), '/{listed}')" if types else columns


def shape_query(table: Table) -> str:
    """An expression of the table's present shape; ``$1`` is its quoted name."""
    types = table.shape.rpartition("/")[2] if "/" in table.shape else ""
    return _shape(types.split(",") if types else ())


def _column(
    row: tuple[Any, ...],
    types: Mapping[int, tuple[Any, ...]],
    keys: Mapping[int, KeyType],
    loose: Sequence[str],
    decimal: str | None,
    grant: Callable[[str], str],
) -> Column:
    name, comment, shown, dimensions, oid, modifier, granted, is_collated = row
    info = _type(oid, modifier, dimensions, types)
    column = postgres_types.column(name, info, shown, nullable=name in loose, comment=comment, decimal=decimal)
    column = as_key(column, oid, _base(oid, types), keys, is_collated=is_collated)
    if granted:
        return column
    return replace(column, refused=f"may not be read by this user: {grant(quote(name))}")


def _key_type(row: tuple[Any, ...]) -> KeyType:
    _, name, kind, base, _, _, item, builtin, _, _, operators, parts = row
    inner = (oid for oid in (base, item) if oid)
    family = int(operators[-1]) if operators else 0
    return KeyType(name, builtin, kind, tuple(operators[:-1]), family, (*inner, *parts))


def _base(oid: int, types: Mapping[int, tuple[Any, ...]]) -> int:
    """The type beneath a domain."""
    return _base(types[oid][_BASE], types) if types[oid][_BASE] else oid


def _proves(family: int, kind: KeyType) -> bool:
    """Whether a unique index of an operator family says that no two values are equal to the order of the type. Another
    family may tell values apart that the order takes for equal; those of the text patterns compare bytes."""
    by_bytes = (_TEXT_PATTERN, _BPCHAR_PATTERN) if kind.builtin and kind.name in ("text", "varchar", "bpchar") else ()
    return family == kind.family or family in by_bytes


def _type(oid: int, modifier: int, dimensions: int, types: Mapping[int, tuple[Any, ...]]) -> TypeInfo:
    _, name, kind, base, base_modifier, base_dimensions, item, builtin, sql, labels, *_ = types[oid]
    if base:
        return _type(base, base_modifier, base_dimensions, types)
    element = _type(item, modifier, 0, types) if item else None
    nests = kind == "c" and _holds_array(oid, types)
    return TypeInfo(name, sql, kind, modifier, builtin, tuple(labels), element, dimensions, nests)


def _holds_array(oid: int, types: Mapping[int, tuple[Any, ...]]) -> bool:
    """Whether the type is an array, or made of one. A composite type is never made of itself."""
    row = types[oid]
    inner = [row[_BASE]] if row[_BASE] else row[_PARTS] if row[_KIND] == "c" else []
    return bool(row[_ITEM]) or any(_holds_array(one, types) for one in inner)


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
    run(f"SELECT {pin()}", ())
    run(f"PREPARE producer_probe AS {sql}", ())
    types = run(_PARAMETERS, ())[0][0]
    run("DEALLOCATE producer_probe", ())
    return dict(zip(names, types, strict=True))
