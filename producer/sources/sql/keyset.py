"""Owns the SQL of pages: which columns a stream reads in what order, and the SELECT for each fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import ConfigError
from producer.model import Between, Json, KeyScalar
from producer.sources.sql.lexis import Lexis
from producer.sources.sql.names import find_column, parameter_names, quote
from producer.sources.sql.table import Column, Query, Table

#: A count as a column.
COUNT = Column("n", pa.field("n", pa.int64(), nullable=False), "count(*)", "bigint")

_REFUSED_HINT = "leave it out by exclude, or cast it in a view"


@dataclass(frozen=True, slots=True)
class Selection:
    """What one stream reads of a table. `order` pairs each column of the traversal with whether it descends.

    `proven` says that the order is total by a unique index; otherwise equal keys are looked for while reading. `reach`
    is the condition that a row has a place in the order: no NULL where the table may hold one ('' where it cannot).
    """

    table: Table
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: tuple[tuple[str, bool], ...]
    hidden: frozenset[str]
    where: str
    params: Mapping[str, Json]
    proven: bool
    types: Mapping[str, str]
    reach: str = ""

    @property
    def order_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.order)

    @property
    def order_columns(self) -> tuple[Column, ...]:
        return tuple(self.table.column(name) for name in self.order_names)


def select(table: Table, stream: StreamConfig, lexis: Lexis) -> Selection:
    """The columns, key and order of `stream`; ConfigError where they do not fit the table or make no total order."""
    what = f"stream {stream.name!r}"
    names = tuple(column.name for column in table.columns)

    def find(name: str, key: str) -> str:
        return find_column(name, names, where=f"{what}, {key}, table {'.'.join(table.path)!r}")

    excluded = {find(name, "exclude") for name in stream.exclude}
    chosen = names if stream.columns is None else tuple(dict.fromkeys(find(name, "columns") for name in stream.columns))
    chosen = tuple(name for name in chosen if name not in excluded)
    if not chosen:
        raise ConfigError(f"{what}: no columns are left to read", hint="look at columns and exclude")

    if stream.key is not None:
        key = tuple(dict.fromkeys(find(name, "key") for name in stream.key))
    else:
        key = table.unique[0] if table.unique else ()
    asked = tuple(_order_item(item, what) for item in stream.order_by or ())
    order = tuple((find(name, "order_by"), descending) for name, descending in asked)
    order = _total(table, stream, key, order)

    needed = tuple(dict.fromkeys((*key, *(name for name, _ in order))))
    hidden = frozenset(name for name in needed if name not in chosen)
    read = (*chosen, *(name for name in needed if name in hidden))
    columns = tuple(table.column(name) for name in read)
    for column in columns:
        if column.refused:
            raise ConfigError(f"{what}: column {column.name!r} {column.refused}", hint=_REFUSED_HINT)
    for name, _ in order:
        if not table.column(name).sortable:
            raise ConfigError(f"{what}: column {name!r} of type {table.column(name).sql_type} cannot order rows")
    columns = tuple(c if c.name in needed else replace(c, position="") for c in columns)
    where, params = _where(stream, what, lexis)
    ordered = {name for name, _ in order}
    # By comparison with a key no null is reached, by counting one is; and a unique index may hold many of them.
    counted = stream.traversal == "OFFSET"
    proven = not table.inherited and any(
        set(unique) <= ordered and not (counted and _nullable(table, unique)) for unique in table.unique
    )
    return Selection(table, columns, key, order, hidden, where, params, proven, {})


def _order_item(text: str, what: str) -> tuple[str, bool]:
    """``name``, ``name asc`` or ``name desc``; the name may be quoted."""
    words = text.strip().rsplit(None, 1)
    descending = False
    if len(words) == 2 and words[1].lower() in ("asc", "desc"):
        descending = words[1].lower() == "desc"
        text = words[0]
    name = text.strip()
    if len(name) > 2 and name[0] == name[-1] and name[0] in '"`':
        name = name[1:-1].replace(name[0] * 2, name[0])
    if not name:
        raise ConfigError(f"{what}, order_by: an entry is empty")
    return name, descending


def _total(
    table: Table, stream: StreamConfig, key: tuple[str, ...], order: tuple[tuple[str, bool], ...]
) -> tuple[tuple[str, bool], ...]:
    """`order` made total by appending the key, and the primary key where the key alone is not unique."""
    what = f"stream {stream.name!r}"
    kind = "view" if table.is_view else "table"
    if not key:
        raise ConfigError(
            f"{what}: {kind} {'.'.join(table.path)!r} has no primary key and no unique index without nulls",
            hint="name the columns that tell its rows apart in key, such as key: [id]",
        )
    if stream.traversal == "ID_RANGE" and any(descending for _, descending in order):
        raise ConfigError(f"{what}: order_by with desc needs traversal OFFSET", hint="ID_RANGE reads keys upwards")
    for name in (
        key
        if any(set(unique) <= set(key) for unique in table.unique) or not table.unique
        else (
            *key,
            *table.unique[0],
        )
    ):
        if name not in (n for n, _ in order):
            order = (*order, (name, False))
    return order


def _where(stream: StreamConfig, what: str, lexis: Lexis) -> tuple[str, Mapping[str, Json]]:
    if stream.where is None:
        if stream.params:
            raise ConfigError(f"{what}: params without where")
        return "", {}
    if not isinstance(stream.where, str):
        raise ConfigError(f"{what}, where: SQL text is expected, not {type(stream.where).__name__}")
    used = parameter_names(stream.where, lexis=lexis)
    missing = [name for name in used if name not in stream.params]
    unused = [name for name in stream.params if name not in used]
    if missing:
        hint = f"add {missing[0]} to params; with dump: --param {missing[0]}=VALUE"
        raise ConfigError(f"{what}, where: :{missing[0]} has no value", hint=hint)
    if unused:
        raise ConfigError(f"{what}, params: where has no :{unused[0]}")
    return stream.where, dict(stream.params)


def within(selection: Selection, between: Between | None, mark: str) -> Selection:
    """`selection` with the condition of a replay."""
    if between is None:
        return selection
    column = selection.table.column(between.column)
    name, value = column.compared[0] or _operand(column, mark), column.compared[1]
    ends = {"__first": (">=", between.first), "__last": ("<=", between.last)}
    params = {param: end for param, (_, end) in ends.items() if end is not None}
    conditions = [f"{name} {column.operator(ends[param][0])} {value.format(f':{param}')}" for param in params]
    where = " AND ".join([*([f"({selection.where}\n)"] if selection.where else []), *conditions])
    types = {**selection.types, **dict.fromkeys(params, column.cast or column.sql_type)}
    return replace(selection, where=where, params={**selection.params, **params}, types=types)


def also(selection: Selection, condition: str) -> Selection:
    """`selection` with one more condition, which has no parameters."""
    return replace(selection, where=f"({selection.where}\n) AND {condition}" if selection.where else condition)


def key_query(
    selection: Selection,
    lower: tuple[KeyScalar, ...] | None,
    upper: tuple[KeyScalar, ...] | None,
    limit: int | None,
    *,
    mark: str,
    row_values: bool,
) -> Query:
    """The rows with `lower` < key <= `upper`, in the order of the key."""
    return _query(
        selection,
        selection.columns,
        _bounds(selection, lower, upper, mark=mark, row_values=row_values),
        _order_by(selection, mark) + ("" if limit is None else f" LIMIT {limit:d}"),
        _bound_params(selection, lower, upper),
    )


def nearest_query(
    selection: Selection,
    columns: tuple[Column, ...],
    lower: tuple[KeyScalar, ...] | None,
    upper: tuple[KeyScalar, ...] | None,
    limit: int,
    *,
    newest: bool,
    mark: str,
    row_values: bool,
) -> Query:
    """`columns` of rows with `lower` < key <= `upper`: the last `limit` of them, or the first."""
    way = " DESC" if newest else ""
    order = ", ".join(f"t.{quote(name, mark)}{way}" for name in selection.order_names)
    return _query(
        selection,
        columns,
        _bounds(selection, lower, upper, mark=mark, row_values=row_values),
        f" ORDER BY {order} LIMIT {limit:d}",
        _bound_params(selection, lower, upper),
    )


def offset_query(selection: Selection, skip: int, limit: int, *, mark: str, deferred: bool) -> Query:
    """Rows `skip` to `skip + limit` of the ordered table.

    `deferred` finds the page's keys first, in a subquery over the key alone (which an index answers without touching
    the rows that are skipped), and joins the rows to them, where the order has columns that can be joined on.
    """
    joined = _joined_on(selection) if deferred else ()
    if not joined:
        return _query(
            selection, selection.columns, [], f"{_order_by(selection, mark)} LIMIT {limit:d} OFFSET {skip:d}", {}
        )
    names = [quote(name, mark) for name in joined]
    inner = " ".join(["SELECT", ", ".join(f"t.{name}" for name in names), "FROM", selection.table.source, "t"])
    inner += _where_text(selection, [])
    inner += f"{_order_by(selection, mark)} LIMIT {limit:d} OFFSET {skip:d}"
    columns = [selection.table.column(name) for name in joined]
    pairs = " AND ".join(f"{_operand(c, mark)} {c.operator('=')} {_operand(c, mark, 'k')}" for c in columns)
    sql = ["SELECT", select_list(selection.columns), "FROM", selection.table.source, f"t JOIN ({inner}) k ON {pairs}"]
    # A limit once more, by which a dialect can ask for fewer of the rows.
    ordered = " ".join(sql) + f"{_order_by(selection, mark)} LIMIT {limit:d}"
    return Query(ordered, selection.columns, selection.params, selection.types, selection.order_names)


def _joined_on(selection: Selection) -> tuple[str, ...]:
    """Columns of the order whose values tell a row: none of them may be null, for a null equals nothing in a join, or
    have values that seem equal."""
    order, table = selection.order_names, selection.table
    unique = (names for names in table.unique if selection.proven and set(names) <= set(order))
    for names in (*unique, order):
        if not _nullable(table, names) and not any(table.column(name).guard for name in names):
            return names
    return ()


def _nullable(table: Table, names: Sequence[str]) -> bool:
    return any(table.column(name).field.nullable for name in names)


def rows_query(selection: Selection, columns: tuple[Column, ...], conditions: list[str], tail: str = "") -> Query:
    """`columns` of the selected rows that fulfil `conditions`, with `tail` (ORDER BY, LIMIT) after them."""
    return _query(selection, columns, conditions, tail, {})


def edge_query(selection: Selection, mark: str, *, greatest: bool) -> Query:
    """The greatest key there is, or the least."""
    way = " DESC" if greatest else ""
    order = ", ".join(f"t.{quote(name, mark)}{way}" for name in selection.order_names)
    return rows_query(selection, selection.order_columns, [], f" ORDER BY {order} LIMIT 1")


def _order_by(selection: Selection, mark: str) -> str:
    # With the alias, because a bare name in ORDER BY would mean the result's column, which may be a cast to text.
    items = (f"t.{quote(name, mark)}" + (" DESC" if down else "") for name, down in selection.order)
    return " ORDER BY " + ", ".join(items)


def select_list(columns: tuple[Column, ...]) -> str:
    """What a SELECT of `columns` names: they, their guards, and the texts of their positions."""
    guards = (column.guard for column in columns if column.guard)
    positions = (column.position for column in columns if column.position)
    return ", ".join([*(column.select for column in columns), *guards, *positions])


def _bounds(
    selection: Selection,
    lower: tuple[KeyScalar, ...] | None,
    upper: tuple[KeyScalar, ...] | None,
    *,
    mark: str,
    row_values: bool,
) -> list[str]:
    found = []
    if lower is not None:
        found.append(_compare(selection.order_columns, ">", "lower", mark, row_values))
    if upper is not None:
        found.append(_compare(selection.order_columns, "<=", "upper", mark, row_values))
    return found


def _operand(column: Column, mark: str, alias: str = "t") -> str:
    """The column in a comparison with a value of its type."""
    return column.operand.format(f"{alias}.{quote(column.name, mark)}")


def _compare(columns: Sequence[Column], sign: str, side: str, mark: str, row_values: bool) -> str:
    """``(a, b) > (:lower0, :lower1)``, or the same spelled out for databases that do not use an index for it, and for
    columns whose comparisons are not written the same way."""
    params = [f":__{side}{i}" for i in range(len(columns))]
    names = [_operand(column, mark) for column in columns]
    operators = {column.operator(sign) for column in columns}
    if len(operators) == 1 and len(columns) > 1 and row_values:
        return f"({', '.join(names)}) {operators.pop()} ({', '.join(params)})"

    def compare(i: int, sign: str) -> str:
        return f"{names[i]} {columns[i].operator(sign)} {params[i]}"

    last = len(columns) - 1
    text = compare(last, sign)
    if not last:
        return text
    # a >= :a AND (a > :a OR (a = :a AND b > :b)): the first part is what an index range is made from.
    for i in reversed(range(last)):
        text = f"({compare(i, sign[0])} OR ({compare(i, '=')} AND {text}))"
    return f"{compare(0, sign[0] + '=')} AND {text}"


def _bound_params(
    selection: Selection, lower: tuple[KeyScalar, ...] | None, upper: tuple[KeyScalar, ...] | None
) -> dict[str, KeyScalar]:
    sides = {"lower": lower or (), "upper": upper or ()}
    return {f"__{side}{i}": value for side, values in sides.items() for i, value in enumerate(values)}


def _query(
    selection: Selection,
    columns: tuple[Column, ...],
    conditions: list[str],
    tail: str,
    params: Mapping[str, KeyScalar],
) -> Query:
    sql = " ".join(["SELECT", select_list(columns), "FROM", selection.table.source, "t"])
    sql += _where_text(selection, conditions) + tail
    return Query(sql, columns, {**selection.params, **params}, _types(selection), selection.order_names)


def _where_text(selection: Selection, conditions: Sequence[str]) -> str:
    """The WHERE clause, with a blank before it; '' where there is nothing to say in it."""
    stated = f"({selection.where}\n)" if selection.where else ""
    found = [condition for condition in (stated, selection.reach, *conditions) if condition]
    return " WHERE " + " AND ".join(found) if found else ""


def _types(selection: Selection) -> dict[str, str]:
    """The SQL types of all parameters that a query may have: the user's, and both ends of a range of keys."""
    ends = {
        f"__{side}{i}": column.cast or column.sql_type
        for side in ("lower", "upper")
        for i, column in enumerate(selection.order_columns)
    }
    return {**selection.types, **ends}


def quantile_query(
    selection: Selection,
    pieces: int,
    source: str,
    lower: tuple[KeyScalar, ...] | None,
    upper: tuple[KeyScalar, ...] | None,
    *,
    mark: str,
    row_values: bool,
) -> Query:
    """The keys of the rows that end each of `pieces` equal parts of the rows in `source` (a FROM clause, alias ``t``)
    with `lower` < key <= `upper`.

    Of n ordered rows the r-th ends a part where ``r * pieces`` has just passed a multiple of n.
    """
    keys = ", ".join(f"t.{quote(name, mark)}" for name in selection.order_names)
    bounds = _bounds(selection, lower, upper, mark=mark, row_values=row_values)
    inner = [
        "SELECT",
        f"{keys}, row_number() OVER (ORDER BY {keys}) AS place_, count(*) OVER () AS rows_",
        f"FROM {source}{_where_text(selection, bounds)}",
    ]
    sql = [
        "SELECT",
        select_list(selection.order_columns),
        f"FROM ({' '.join(inner)}) t",
        f"WHERE (place_ * {pieces:d}) % rows_ < {pieces:d} ORDER BY place_",
    ]
    params = {**selection.params, **_bound_params(selection, lower, upper)}
    return Query(" ".join(sql), selection.order_columns, params, _types(selection), selection.order_names)


def step_query(
    selection: Selection,
    after: tuple[KeyScalar, ...] | None,
    step: int,
    *,
    mark: str,
    row_values: bool,
    upper: tuple[KeyScalar, ...] | None = None,
) -> Query:
    """The key of the `step`-th row after the key `after` (and not above `upper`), by walking the index."""
    return _query(
        selection,
        selection.order_columns,
        _bounds(selection, after, upper, mark=mark, row_values=row_values),
        _order_by(selection, mark) + f" LIMIT 1 OFFSET {step - 1:d}",
        _bound_params(selection, after, upper),
    )


def newest_query(selection: Selection, count: int, mark: str) -> Query:
    """The greatest `count` values of a key of one column of integers, of all rows of the table."""
    everything = replace(selection, where=selection.order_columns[0].whole, params={})
    order = f" ORDER BY t.{quote(selection.order_names[0], mark)} DESC LIMIT {count:d}"
    return _query(everything, selection.order_columns, [], order, {})


def ranges_query(selection: Selection, ranges: Sequence[tuple[int, int]], limit: int, mark: str) -> Query:
    """The rows whose key, one integer, lies in one of the ranges (both ends inclusive), in its order."""
    tail = f"{_order_by(selection, mark)} LIMIT {limit:d}"
    return _query(selection, selection.columns, [_in_ranges(selection, ranges, mark)], tail, {})


def unselected_query(selection: Selection, ranges: Sequence[tuple[int, int]], limit: int, mark: str) -> Query:
    """The keys in the ranges whose rows do not fulfil the stream's condition."""
    other = replace(selection, where=f"({selection.where}\n) IS NOT TRUE")
    return _query(other, selection.order_columns, [_in_ranges(selection, ranges, mark)], f" LIMIT {limit:d}", {})


def _in_ranges(selection: Selection, ranges: Sequence[tuple[int, int]], mark: str) -> str:
    """Whole numbers stand in the text: there may be hundreds, and each parameter costs more than its look-up."""
    name = f"t.{quote(selection.order_names[0], mark)}"
    single = ", ".join(f"{first:d}" for first, last in ranges if first == last)
    wide = [f"{name} BETWEEN {first:d} AND {last:d}" for first, last in ranges if first != last]
    return "(" + " OR ".join([*([f"{name} IN ({single})"] if single else []), *wide]) + ")"


def tied_query(selection: Selection, key: tuple[KeyScalar, ...] | None, skip: int, *, mark: str) -> Query:
    """A row where several rows have `key` to the database, or (without one) where the two after `skip` rows have the
    same; no row where not. Grouping takes nulls for the same, and what the columns' collations do."""
    names = [f"t.{quote(name, mark)}" for name in selection.order_names]
    equal = [f"{_operand(c, mark)} {c.operator('=')} :__lower{i}" for i, c in enumerate(selection.order_columns)]
    tail = " LIMIT 2" if key is not None else f"{_order_by(selection, mark)} LIMIT 2 OFFSET {skip:d}"
    columns = tuple(
        Column(c.name, c.field, name, c.sql_type) for c, name in zip(selection.order_columns, names, strict=True)
    )
    two = _query(selection, columns, equal if key is not None else [], tail, _bound_params(selection, key, None))
    sql = f"SELECT {COUNT.select} FROM ({two.sql}) t GROUP BY {', '.join(names)} HAVING count(*) > 1"
    return replace(two, sql=sql, columns=(COUNT,))


def digest_query(
    selection: Selection,
    checksum: str,
    lower: tuple[KeyScalar, ...] | None,
    upper: tuple[KeyScalar, ...] | None,
    *,
    mark: str,
    row_values: bool,
) -> Query:
    """How many rows there are with `lower` < key <= `upper`, and the sum of an expression of whole numbers."""
    total = Column("total", pa.field("total", pa.decimal128(38, 0)), f"coalesce(sum({checksum}), 0)", "numeric")
    bounds = _bounds(selection, lower, upper, mark=mark, row_values=row_values)
    return _query(selection, (COUNT, total), bounds, "", _bound_params(selection, lower, upper))


def count_query(
    selection: Selection,
    lower: tuple[KeyScalar, ...] | None,
    upper: tuple[KeyScalar, ...] | None,
    *,
    mark: str,
    row_values: bool,
) -> Query:
    """How many rows there are with `lower` < key <= `upper`."""
    bounds = _bounds(selection, lower, upper, mark=mark, row_values=row_values)
    return _query(selection, (COUNT,), bounds, "", _bound_params(selection, lower, upper))
