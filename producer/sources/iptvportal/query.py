"""Requests of the API and their conditions: `QueryBuilder`, `Q`, and how they become JSONSQL."""

from __future__ import annotations

import datetime as dt
import decimal
import difflib
import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from producer.errors import ConfigError

Json = Any

#: Suffix of a keyword -> JSONSQL operator. ``isnull`` is `is` or `is_not` with null.
LOOKUPS = {name: name for name in ("eq", "neq", "gt", "gte", "lt", "lte", "in", "like", "ilike", "is", "is_not")}
#: Suffix -> (operator, pattern) of a comparison with a piece of text. Those with an i ignore case.
_PIECES = {
    f"{i}{name}": (f"{i}like", pattern)
    for i in ("", "i")
    for name, pattern in (("contains", "%{}%"), ("startswith", "{}%"), ("endswith", "%{}"))
}
_SUFFIXES = (*LOOKUPS, *_PIECES, "isnull")
_LIKE_SPECIAL = re.compile(r"[\\%_]")  # PostgreSQL's LIKE takes a backslash before each
_CONNECTIVES = ("and", "or", "not")


#: A JSON-RPC request without its id, which the client gives: ``{"jsonrpc", "method", "params"}``.
Request = Mapping[str, Json]


class QueryBuilder:
    """Builds requests for `AsyncIPTVPortalClient.execute`."""

    def select(
        self,
        data: Sequence[Json] | str,
        from_: Json,
        where: Q | Mapping[str, Json] | None = None,
        order_by: Json = None,
        limit: int | None = None,
        offset: int | None = None,
        distinct: bool = False,
        group_by: Json = None,
    ) -> Request:
        """A select of the columns `data`; None or False leaves an option out. ``order_by`` may be written as in SQL."""
        given = {
            "where": where_json(where),
            "order_by": _order(order_by),
            "limit": limit,
            "offset": offset,
            "distinct": distinct or None,
            "group_by": group_by,
        }
        params = {"data": data, "from": from_} | {name: value for name, value in given.items() if value is not None}
        return {"jsonrpc": "2.0", "method": "select", "params": params}


def _order(order_by: Json) -> Json:
    """``"last_seen DESC"`` as ``["last_seen", "DESC"]``; anything else is JSONSQL's already."""
    if not isinstance(order_by, str):
        return order_by
    name, _, way = order_by.strip().partition(" ")
    return [name, "DESC"] if way.strip().upper() == "DESC" else name


class Q:
    """A condition: ``Q(disabled=False) & Q(balance__gte=10) | ~Q(name__like="a%")``.

    Keywords of one `Q` are joined by AND. Suffixes: eq (the default), neq, gt, gte, lt, lte, in, like, ilike, is,
    is_not, isnull; contains, startswith, endswith for a piece of text, and with an i before them without regard to
    case. Instead of a second `Q`, ``&`` and ``|`` take a JSONSQL object. `compile` gives the JSONSQL object, or None
    for an empty condition. ConfigError names an unknown suffix.
    """

    __slots__ = ("_compiled",)

    def __init__(self, **conditions: Any) -> None:
        self._compiled = _join("and", [_condition(key, value) for key, value in conditions.items()])

    @classmethod
    def _of(cls, compiled: Json) -> Q:
        made = cls()
        made._compiled = compiled
        return made

    def __and__(self, other: Q | Mapping[str, Json]) -> Q:
        return Q._of(_join("and", [self._compiled, where_json(other)]))

    def __rand__(self, other: Mapping[str, Json]) -> Q:
        return Q._of(_join("and", [where_json(other), self._compiled]))

    def __or__(self, other: Q | Mapping[str, Json]) -> Q:
        return Q._of(_join("or", [self._compiled, where_json(other)]))

    def __ror__(self, other: Mapping[str, Json]) -> Q:
        return Q._of(_join("or", [where_json(other), self._compiled]))

    def __invert__(self) -> Q:
        return Q._of(None if self._compiled is None else {"not": [self._compiled]})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Q) and self._compiled == other._compiled

    def __hash__(self) -> int:
        return hash(repr(self._compiled))

    def __repr__(self) -> str:
        return f"Q({self._compiled!r})"

    def compile(self) -> Json:
        return self._compiled


def where_json(where: Q | Mapping[str, Json] | None) -> Json:
    """A stream's ``where`` as JSONSQL: a `Q`, or an object that is JSONSQL already. ConfigError for anything else."""
    if isinstance(where, Q):
        return where.compile()
    if where is None or isinstance(where, Mapping):
        return dict(where) if where else None
    raise ConfigError(
        f"where must be a Q or a JSONSQL object, not {type(where).__name__}",
        hint='for example Q(disabled=False), or {"eq": ["disabled", false]}',
    )


def all_of(*conditions: Json) -> Json:
    """The AND of those conditions that are not None."""
    return _join("and", list(conditions))


def columns_of(where: Json) -> Iterator[str]:
    """The names of the columns a condition compares: the first operand of each comparison, where it is a name."""
    if not isinstance(where, Mapping):
        return
    for operator, operands in where.items():
        if operator in _CONNECTIVES:
            for inner in operands if isinstance(operands, list) else [operands]:
                yield from columns_of(inner)
        elif isinstance(operands, list) and operands and isinstance(operands[0], str):
            yield operands[0]


def nearest(name: str, known: Collection[str]) -> str:
    """A hint with the nearest of the known names, or all of them where none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(sorted(known))


def _join(operator: str, conditions: list[Json]) -> Json:
    parts: list[Json] = []
    for condition in conditions:
        if condition is None:
            continue
        nested = condition.get(operator) if len(condition) == 1 else None
        parts.extend(nested if nested is not None else [condition])
    return None if not parts else parts[0] if len(parts) == 1 else {operator: parts}


def _condition(key: str, value: Any) -> Json:
    column, separator, suffix = key.rpartition("__")
    if not separator:
        return {"eq": [key, _literal(key, value)]}
    if suffix == "isnull":
        return {"is" if value else "is_not": [column, None]}
    if suffix in _PIECES:
        if not isinstance(value, str):
            raise ConfigError(f"Q: {key} needs a text, not {type(value).__name__}")
        operator, pattern = _PIECES[suffix]
        return {operator: [column, pattern.format(_LIKE_SPECIAL.sub(r"\\\g<0>", value))]}
    if suffix not in LOOKUPS:
        raise ConfigError(f"Q: {suffix!r} in {key!r} is not a comparison", hint=nearest(suffix, _SUFFIXES))
    if suffix == "in":
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            raise ConfigError(f"Q: {key} needs a list of values, not {type(value).__name__}")
        return {"in": [column, *(_literal(key, v) for v in value)]}
    return {LOOKUPS[suffix]: [column, _literal(key, value)]}


def _literal(key: str, value: Any) -> Json:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case dt.datetime():
            return value.isoformat(sep=" ")
        case dt.date() | decimal.Decimal() | uuid.UUID():
            return str(value)
    raise ConfigError(f"Q: {key} is a {type(value).__name__}, which JSON cannot carry")
