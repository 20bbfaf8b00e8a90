"""The names of Avro fields over all versions of a schema: a field that has held one column never holds another.

The names are read from the versions that there were. A version's field names its column by the property ``column``,
where that is not the field's own name; where a transform has renamed the column, ``source_column`` says what it is in
the source. The field of a hand-written schema may list columns that it held before in ``former_columns``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from producer.encoding.compatibility import full_name

Json = Any
#: The columns that lead to a record or a named type, from the outermost on; arrays, maps and unions do not count.
Path = tuple[str, ...]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_valid_name(name: str) -> bool:
    """A name by Avro's rules, without a namespace."""
    return _NAME.fullmatch(name) is not None


def valid_name(name: str) -> str:
    """`name` with all that Avro does not allow replaced by ``_``."""
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return cleaned if is_valid_name(cleaned) else f"_{cleaned}"


def free_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or else with the first number that makes it a name that is not `taken`, which it is from now on."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name


@dataclass(frozen=True, slots=True)
class Held:
    """The column that a field holds; `renamed`: a transform has given the name."""

    column: str
    renamed: bool = False
    former: frozenset[str] = frozenset()


def held_by(avro_field: Mapping[str, Json]) -> Held:
    """What a field of a schema says of itself."""
    former = frozenset(map(str, avro_field.get("former_columns", ())))
    if "source_column" in avro_field:
        return Held(str(avro_field["source_column"]), True, former)
    return Held(str(avro_field.get("column", avro_field["name"])), False, former)


@dataclass(frozen=True, slots=True)
class KnownNames:
    """By path: the fields of a record, the one that was named last at the end; and the names of types."""

    fields: Mapping[Path, Mapping[str, Held]] = field(default_factory=dict)
    types: Mapping[Path, str] = field(default_factory=dict)

    def then(self, schemas: Iterable[Json]) -> KnownNames:
        """With the names of newer schemas, the oldest first. Where versions differ, the newest holds."""
        fields = {path: dict(held) for path, held in self.fields.items()}
        types = dict(self.types)
        for schema in schemas:
            for path, found in _walk(schema, (), {}, frozenset()):
                if isinstance(found, str):
                    types[path] = found
                else:
                    record = fields.setdefault(path, {})
                    for name, held in found.items():
                        record.pop(name, None)
                        record[name] = held
        return KnownNames(fields, types)

    def problems(self, schema: Json, columns: Mapping[str, frozenset[str]]) -> list[str]:
        """Each field of a hand-written schema that would hold another column than before. `columns` has, for fields of
        the outermost record, what their column is called in the table and after transforms."""
        found = []
        for path, record in _walk(schema, (), {}, frozenset()):
            for name, new in record.items() if not isinstance(record, str) else ():
                old = self.fields.get(path, {}).get(name)
                names = columns.get(name, frozenset()) if not path else frozenset([new.column])
                if old is not None and names and old.column not in names | new.former:
                    shown = ".".join((*path, name))
                    found.append(f"field {shown!r} has held column {old.column!r}, and would hold {sorted(names)[0]!r}")
        return found

    def to_json(self) -> Json:
        """The inverse of `from_json`."""
        fields = [
            [list(path), name, held.column, held.renamed]
            for path, record in self.fields.items()
            for name, held in record.items()
        ]
        return {"fields": fields, "types": [[list(path), name] for path, name in self.types.items()]}

    @staticmethod
    def from_json(value: Json) -> KnownNames:
        """ValueError, KeyError or TypeError for what `to_json` does not give."""
        fields: dict[Path, dict[str, Held]] = {}
        for path, name, column, renamed in value["fields"]:
            fields.setdefault(tuple(path), {})[name] = Held(column, renamed)
        return KnownNames(fields, {tuple(path): name for path, name in value["types"]})


def _walk(
    schema: Json, path: Path, named: dict[str, Json], inside: frozenset[str]
) -> Iterator[tuple[Path, dict[str, Held] | str]]:
    """The records' fields and the types' names, in a schema's order; `inside` are the records that are being walked."""
    match schema:
        case list():
            for branch in schema:
                yield from _walk(branch, path, named, inside)
        case str() if schema in named and schema not in inside:
            yield from _walk(named[schema], path, named, inside)
        case {"type": "record", "fields": list(fields), "name": str(name)}:
            named[name] = named[full_name(schema)] = schema
            if path:
                yield path, name.rpartition(".")[2]
            held = {str(one["name"]): held_by(one) for one in fields}
            yield path, held
            for one in fields:
                column = held[str(one["name"])].column
                yield from _walk(one["type"], (*path, column), named, inside | {name, full_name(schema)})
        case {"type": "enum" | "fixed", "name": str(name)}:
            yield path, name.rpartition(".")[2]
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            yield from _walk(inner, path, named, inside)
        case {"type": dict() | list() as inner}:
            yield from _walk(inner, path, named, inside)


@dataclass(frozen=True, slots=True)
class NamedColumn:
    """A column that wants a field: `name` as it leaves, `source` as the table has it, another one where `renamed`."""

    name: str
    source: str

    @property
    def renamed(self) -> bool:
        return self.name != self.source


class NameTakenError(Exception):
    """A transform gives a column the name of a field that has held another one."""

    def __init__(self, name: str, before: str, now: str) -> None:
        super().__init__(f"field {name!r} has held column {before!r}, and would hold {now!r}")


def field_names(columns: Sequence[NamedColumn], held: Mapping[str, Held]) -> dict[str, str]:
    """A field for each column, by the column's name as it leaves; all differ, and none has `held` another column.

    A column keeps its field. A new one gets its own name, made valid, with a number where that is taken: valid names
    come first. `NameTakenError` where a transform has given a valid name that is taken.
    """
    chosen: dict[str, str] = {}
    for column in columns:
        if column.renamed and is_valid_name(column.name):
            old = held.get(column.name)
            if old is not None and old.column != column.source:
                raise NameTakenError(column.name, old.column, column.source)
            chosen[column.name] = column.name
    for column in columns:
        if column.name not in chosen and (kept := _kept(column, held)) is not None:
            chosen[column.name] = kept
    taken = {*held, *chosen.values()}
    rest = [column.name for column in columns if column.name not in chosen]
    for name in sorted(rest, key=lambda name: not is_valid_name(name)):
        chosen[name] = free_name(valid_name(name), taken)
    return chosen


def _kept(column: NamedColumn, held: Mapping[str, Held]) -> str | None:
    """The field that the column has had: of several that of its own name, else the newest one.

    A name that a transform gave is left with the transform, unless it had to be made valid.
    """
    natural = valid_name(column.name)
    own = [name for name, old in held.items() if old.column == column.source]
    if natural in own:
        return natural
    if column.renamed:
        own = [name for name in own if held[name].renamed and re.fullmatch(rf"{re.escape(natural)}_\d+", name)]
    else:
        own = [name for name in own if not held[name].renamed]
    return own[-1] if own else None
