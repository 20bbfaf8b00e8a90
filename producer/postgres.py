"""The settings that every connection to PostgreSQL pins, so that none of the server, database, role or URL matters.

A server, a database and a role may each carry settings that change how values are written, read, rounded or compared,
and where names are looked up. They are pinned for one transaction at a time: between transactions a pooler may give the
server's session to somebody else, and it may refuse settings in the start of a connection. The statement that pins them
is itself read under the role's search path, so it qualifies all functions and operators.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Settings that any role may set and that change values or the meaning of SQL. One that the server does not know, or
#: that has its value already, is left alone.
SETTINGS: Mapping[str, str] = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "array_nulls": "on",
    "backslash_quote": "safe_encoding",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "client_min_messages": "warning",  # libpq writes the others to stderr
    "escape_string_warning": "on",
    "extra_float_digits": "1",
    "gin_fuzzy_search_limit": "0",  # above it an index gives only some of the rows
    "lc_numeric": "C",
    "lc_time": "C",
    "quote_all_identifiers": "off",
    "row_security": "on",
    "standard_conforming_strings": "on",
    "timezone_abbreviations": "Default",
    "transform_null_equals": "off",
    "xmlbinary": "base64",
    "xmloption": "content",
}

#: Where our own SQL finds its names: first in pg_catalog, then along the role's path. Temporary tables come last.
ROLE_PATH = """pg_catalog.concat_ws(', ', 'pg_catalog',
 CASE WHEN pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.<>) ''
 THEN pg_catalog.current_setting('search_path') END, 'pg_temp')"""
#: For queries of the catalog alone: names of other types are written with their schema.
CATALOG_PATH = "'pg_catalog, pg_temp'"

#: Money is stored as a whole number, and lc_monetary says how many of its digits stand after the point: a locale with
#: another number of them than two is kept, since the values would change.
_MONETARY = """CASE WHEN pg_catalog.current_setting('lc_monetary') OPERATOR(pg_catalog.=) ANY
 (ARRAY['C', 'POSIX', 'C.UTF-8', 'C.utf8']) THEN 'C'
 WHEN pg_catalog.scale('1'::pg_catalog.money::pg_catalog.numeric) OPERATOR(pg_catalog.=) 2 THEN 'C'
 ELSE pg_catalog.current_setting('lc_monetary') END"""


def pin(path: str = ROLE_PATH) -> str:
    """Expressions for a SELECT's list that pin all settings until the transaction's end. `path` is an expression."""
    values = ", ".join(f"('{name}', '{value}')" for name, value in SETTINGS.items())
    return (
        "(SELECT pg_catalog.count(pg_catalog.set_config(s.name, s.value, true))"
        f" FROM (VALUES {values}) s(name, value)"
        " WHERE pg_catalog.current_setting(s.name, true) OPERATOR(pg_catalog.<>) s.value), "
        f"pg_catalog.set_config('lc_monetary', {_MONETARY}, true), "
        f"pg_catalog.set_config('search_path', {path}, true)"
    )
