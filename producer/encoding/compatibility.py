"""Owns the question whether one Avro schema can read what another wrote, and names the fields where it cannot.

The rules are those of https://avro.apache.org/docs/current/specification/#schema-resolution; logical types must be
the same, as registries want it. Pure functions over parsed JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Any
_Named = dict[str, Json]

_CHANGED = " was "
_PROMOTIONS: Mapping[str, frozenset[str]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}


def reading_problems(reader: Json, writer: Json) -> list[str]:
    """Why `reader` cannot read data of `writer`: a line for each field, empty where it can."""
    return _problems(reader, writer, "", _names(reader, "", {}), _names(writer, "", {}), frozenset())


def misreadings(reader: Json, writer: Json) -> list[str]:
    """The problems that are not seen without logical types: a reader that has none, or does not compare them, takes
    values for others, such as those of a decimal with another scale."""
    plain = {_field_of(line) for line in reading_problems(_plain(reader), _plain(writer))}
    found = reading_problems(reader, writer)
    return [line for line in found if _CHANGED in line and _field_of(line) not in plain]


def _plain(schema: Json) -> Json:
    """Without its logical types."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if isinstance(schema, dict):
        return {name: _plain(part) for name, part in schema.items() if name != "logicalType"}
    return schema


def full_name(schema: Json, namespace: str = "") -> str:
    """A named type's full name; '' for a schema that has none."""
    if not isinstance(schema, dict) or "name" not in schema:
        return ""
    name = str(schema["name"])
    space = str(schema.get("namespace", namespace))
    return name if "." in name or not space else f"{space}.{name}"


def _names(schema: Json, namespace: str, found: _Named) -> _Named:
    match schema:
        case list():
            for branch in schema:
                _names(branch, namespace, found)
        case dict():
            name = full_name(schema, namespace)
            if name:
                found[name] = found[name.rpartition(".")[2]] = schema
                namespace = name.rpartition(".")[0]
            for field in schema.get("fields", ()):
                _names(field["type"], namespace, found)
            for inner in ("items", "values"):
                if inner in schema:
                    _names(schema[inner], namespace, found)
    return found


def _resolved(schema: Json, names: _Named) -> Json:
    """A reference by name replaced by what it names, and ``{"type": "int"}`` by ``"int"``."""
    if isinstance(schema, str):
        return names.get(schema, schema)
    if isinstance(schema, dict) and isinstance(schema.get("type"), dict | list):
        return _resolved(schema["type"], names)
    return schema


def _kind(schema: Json) -> str:
    return str(schema["type"]) if isinstance(schema, dict) else str(schema)


def _shown(schema: Json) -> str:
    if isinstance(schema, list):
        return " or ".join(_shown(branch) for branch in schema)
    if isinstance(schema, dict):
        logical = schema.get("logicalType")
        if logical == "decimal":
            return f"decimal({schema.get('precision')}, {schema.get('scale', 0)})"
        return str(logical or schema.get("name") or schema["type"])
    return str(schema)


def _problems(reader: Json, writer: Json, path: str, rs: _Named, ws: _Named, seen: frozenset[Any]) -> list[str]:
    reader, writer = _resolved(reader, rs), _resolved(writer, ws)
    if isinstance(writer, list):
        found = [p for branch in writer for p in _problems(reader, branch, path, rs, ws, seen)]
        deep = any(_is_record(_resolved(branch, rs)) for branch in (reader if isinstance(reader, list) else [reader]))
        return [_differs(path, writer, reader)] if found and not deep else found
    if isinstance(reader, list):
        tries = [_problems(branch, writer, path, rs, ws, seen) for branch in reader]
        if not all(tries):
            return []
        records = [t for branch, t in zip(reader, tries, strict=True) if _is_record(_resolved(branch, rs))]
        return records[0] if len(records) == 1 and _is_record(writer) else [_differs(path, writer, reader)]
    kind = _kind(reader)
    if kind != _kind(writer):
        return [] if kind in _PROMOTIONS.get(_kind(writer), ()) else [_differs(path, writer, reader)]
    if _logical(reader) != _logical(writer):
        return [_differs(path, writer, reader)]
    match kind:
        case "record":
            return _record_problems(reader, writer, path, rs, ws, seen)
        case "array":
            return _problems(reader["items"], writer["items"], f"{path}[]", rs, ws, seen)
        case "map":
            return _problems(reader["values"], writer["values"], f"{path}{{}}", rs, ws, seen)
        case "enum":
            gone = [s for s in writer["symbols"] if s not in reader["symbols"]]
            if gone and "default" not in reader:
                return [f"{_field(path)} has lost the symbol {gone[0]!r} and has no default"]
        case "fixed" if reader["size"] != writer["size"]:
            return [f"{_field(path)} has changed its size from {writer['size']} to {reader['size']}"]
    return []


def _record_problems(reader: Json, writer: Json, path: str, rs: _Named, ws: _Named, seen: frozenset[Any]) -> list[str]:
    pair = (full_name(reader), full_name(writer))
    if pair in seen:
        return []
    written = {f["name"]: f for f in writer["fields"]}
    found = []
    for field in reader["fields"]:
        inner = f"{path}.{field['name']}" if path else str(field["name"])
        match next((written[n] for n in (field["name"], *field.get("aliases", ())) if n in written), None):
            case None if "default" not in field:
                found.append(f"{_field(inner)} has no counterpart and no default")
            case dict() as source:
                found += _problems(field["type"], source["type"], inner, rs, ws, seen | {pair})
    return found


def _is_record(schema: Json) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "record"


def _logical(schema: Json) -> tuple[Any, ...]:
    if not isinstance(schema, dict) or "logicalType" not in schema:
        return ()
    if schema["logicalType"] == "decimal":
        return ("decimal", schema.get("precision"), schema.get("scale", 0))
    return (schema["logicalType"],)


def _field(path: str) -> str:
    return f"field {path!r}" if path else "the schema itself"


def _differs(path: str, writer: Json, reader: Json) -> str:
    return f"{_field(path)}{_CHANGED}{_shown(writer)} and is now {_shown(reader)}"


def _field_of(line: str) -> str:
    return line.partition(_CHANGED)[0]
