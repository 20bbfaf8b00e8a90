"""Owns names and text of SQL: splitting a table's name, quoting identifiers, finding ``:named`` parameters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

from producer.errors import ConfigError
from producer.sources.sql.lexis import Lexis, parameters

_PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|`((?:[^`]|``)+)`|([^\s."`]+))\s*(\.|$)')


def split_name(text: str, *, fold: Callable[[str], str]) -> tuple[str, ...]:
    """The parts of a possibly qualified name as SQL writes it; `fold` is applied to parts without quotes.

    >>> split_name('shop."Odd.Name"', fold=str.lower)
    ('shop', 'Odd.Name')
    """
    parts: list[str] = []
    at = 0
    while True:
        match = _PART.match(text, at)
        if match is None:
            hint = """write it as in SQL: schema.table, or with quotes: table: '"Odd Name"'"""
            raise ConfigError(f"table {text!r} is not a name", hint=hint)
        double, back, plain, dot = match.groups()
        if double is not None:
            parts.append(double.replace('""', '"'))
        elif back is not None:
            parts.append(back.replace("``", "`"))
        else:
            parts.append(fold(plain))
        at = match.end()
        if not dot:
            return tuple(parts)


def quote(name: str, mark: str = '"') -> str:
    """`name` as a quoted identifier."""
    if "\0" in name:
        raise ConfigError(f"the name {name!r} holds a NUL character")
    return mark + name.replace(mark, mark * 2) + mark


def bind_named(sql: str, replace: Callable[[str], str], *, lexis: Lexis) -> str:
    """`sql` with each ``:name`` outside strings, quoted names and comments replaced by ``replace(name)``."""
    parts, at = [], 0
    for start, end, name in parameters(sql, lexis):
        parts += [sql[at:start], replace(name)]
        at = end
    return "".join([*parts, sql[at:]])


def parameter_names(sql: str, *, lexis: Lexis) -> tuple[str, ...]:
    """The distinct ``:name`` parameters of `sql`, in order of appearance."""
    return tuple(dict.fromkeys(name for _, _, name in parameters(sql, lexis)))


def nearest(name: str, choices: Iterable[str]) -> str:
    """``did you mean 'x'?``, or '' when nothing is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]!r}?" if close else ""


def nearest_table(name: str, tables: Iterable[str]) -> str:
    """`nearest`, or the first ten of `tables` when nothing is near."""
    names = sorted(tables)
    listed = "tables: " + ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return nearest(name, names) or (listed if names else "the database has no tables that this user sees")


def find_column(name: str, names: Sequence[str], *, where: str) -> str:
    """The column that `name` means: exactly so, or the only one that differs in case alone. Else ConfigError."""
    if name in names:
        return name
    alike = [n for n in names if n.lower() == name.lower()]
    if len(alike) == 1:
        return alike[0]
    hint = nearest(name, names) or "columns: " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise ConfigError(f"{where}: there is no column {name!r}", hint=hint)
