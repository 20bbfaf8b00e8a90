"""Owns JSONSQL -> SQL for the loopback server: a statement and its bound values, for SQLite or PostgreSQL."""

from __future__ import annotations

from typing import Any

Json = Any

_COMPARISONS = {
    "eq": "=",
    "neq": "<>",
    "lt": "<",
    "gt": ">",
    "lte": "<=",
    "gte": ">=",
    "like": "LIKE",
    "ilike": "ILIKE",
    "is": "IS",
    "is_not": "IS NOT",
}
_ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "concat": "||"}
_FUNCTIONS = {"count", "min", "max", "sum", "avg", "lower", "upper", "length", "coalesce"}
_SELECT_KEYS = {"data", "from", "where", "order_by", "group_by", "limit", "offset"}


class JsonSqlError(Exception):
    """The request is not JSONSQL; the text goes to the client."""


def compile_select(params: Json, *, postgres: bool) -> tuple[str, list[Json]]:
    """The SQL of a select, and the values of its ``?`` (SQLite; for PostgreSQL they are literals)."""
    compiler = _Compiler(postgres)
    return compiler.select(params), compiler.values


class _Compiler:
    def __init__(self, postgres: bool) -> None:
        self.postgres = postgres
        self.values: list[Json] = []

    def select(self, params: Json) -> str:
        if not isinstance(params, dict) or "data" not in params or "from" not in params:
            raise JsonSqlError("select needs data and from")
        if unknown := set(params) - _SELECT_KEYS:
            raise JsonSqlError(f"select does not know {sorted(unknown)[0]}")
        data = params["data"]
        items = data if isinstance(data, list) else [data]
        sql = f"SELECT {', '.join(self._item(i) for i in items)} FROM {self._from(params['from'])}"
        if params.get("where") is not None:
            sql += f" WHERE {self._expression(params['where'])}"
        if params.get("order_by") is not None:
            sql += f" ORDER BY {self._order(params['order_by'])}"
        for key in ("limit", "offset"):
            if key in params:
                value = params[key]
                if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                    raise JsonSqlError(f"{key} must be a whole number")
                sql += f" {key.upper()} {value}"
        return sql

    def _item(self, item: Json) -> str:
        if item == "*":
            return "*"
        if isinstance(item, str):
            return self._quoted(item)
        alias = f" AS {self._quoted(item['as'])}" if isinstance(item, dict) and "as" in item else ""
        return self._expression({k: v for k, v in item.items() if k != "as"}) + alias

    def _from(self, source: Json) -> str:
        if isinstance(source, str):
            return self._quoted(source)
        parts = []
        for entry in source:
            name = entry.get("table") or entry.get("join")
            part = f"{self._quoted(name)} AS {self._quoted(entry['as'])}"
            if "join" in entry:
                kind = str(entry.get("join_type", "inner")).upper()
                if kind not in ("INNER", "LEFT", "RIGHT", "FULL"):
                    raise JsonSqlError(f"unknown join_type {kind}")
                part = f"{kind} JOIN {part} ON {self._expression(entry['on'])}"
            parts.append(part)
        return " ".join(parts)

    def _order(self, order: Json) -> str:
        if isinstance(order, list) and len(order) == 2 and order[1] in ("ASC", "DESC"):
            return f"{self._column(order[0])} {order[1]}"
        items = order if isinstance(order, list) else [order]
        return ", ".join(self._order(i) if isinstance(i, list) else self._column(i) for i in items)

    def _column(self, name: Json) -> str:
        if isinstance(name, dict) and len(name) == 1:
            ((alias, column),) = name.items()
            return f"{self._quoted(alias)}.{self._quoted(column)}"
        if not isinstance(name, str):
            raise JsonSqlError(f"not a column: {name!r}")
        return self._quoted(name)

    def _expression(self, node: Json) -> str:
        if not isinstance(node, dict):
            return self._value(node)
        if "function" in node:
            name = str(node["function"]).lower()
            if name not in _FUNCTIONS:
                raise JsonSqlError(f"unknown function {name}")
            args = node.get("args", [])
            args = args if isinstance(args, list) else [args]
            return f"{name}({', '.join('*' if a == '*' else self._operand(a, 0) for a in args)})"
        if len(node) != 1:
            raise JsonSqlError("an expression has one operator")
        ((operator, operands),) = node.items()
        operands = operands if isinstance(operands, list) else [operands]
        if operator in ("and", "or"):
            return "(" + f" {operator.upper()} ".join(self._expression(o) for o in operands) + ")"
        if operator == "not":
            return f"(NOT {self._expression(operands[0])})"
        if operator == "in":
            first = self._operand(operands[0], 0)
            if len(operands) == 2 and isinstance(operands[1], dict) and "from" in operands[1]:
                return f"({first} IN ({self.select(operands[1])}))"
            return f"({first} IN ({', '.join(self._value(v) for v in operands[1:]) or 'NULL'}))"
        if operator == "coalesce":
            return f"coalesce({', '.join(self._operand(o, n) for n, o in enumerate(operands))})"
        if operator in _COMPARISONS or operator in _ARITHMETIC:
            sign = _COMPARISONS.get(operator) or _ARITHMETIC[operator]
            if sign == "ILIKE" and not self.postgres:
                sign = "LIKE"  # SQLite's LIKE ignores the case of ASCII
            return "(" + f" {sign} ".join(self._operand(o, n) for n, o in enumerate(operands)) + ")"
        if isinstance(operands[0], str):
            return self._column(node)  # {"alias": "column"}
        raise JsonSqlError(f"unknown operator {operator}")

    def _operand(self, operand: Json, index: int) -> str:
        """The first operand's text is a column, any other's is a value."""
        if isinstance(operand, dict):
            return self._expression(operand)
        return self._column(operand) if index == 0 and isinstance(operand, str) else self._value(operand)

    def _value(self, value: Json) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, bool):
            return "TRUE" if value else "FALSE"
        if not isinstance(value, int | float | str):
            raise JsonSqlError(f"not a value: {value!r}")
        if self.postgres:
            # An untyped literal takes the other side's type, as in the real API's SQL; a bound text would not.
            return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
        self.values.append(value)
        return "?"

    def _quoted(self, name: Json) -> str:
        if not isinstance(name, str) or not name or "\x00" in name:
            raise JsonSqlError(f"not a name: {name!r}")
        # Not " for SQLite: what is no column would then be taken for a text.
        mark = '"' if self.postgres else "`"
        return mark + name.replace(mark, mark * 2) + mark
