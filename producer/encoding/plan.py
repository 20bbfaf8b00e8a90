"""Owns the compiled form of one pairing of Avro schema and Arrow schema, which all vectorised encoders walk.

A plan is a tree: a node says what is written (its operation) and how the Arrow column that it reads is laid out.
The C kernel gets the same tree flat; the numbers of operations and layouts are those of ``_avro.h``.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

AvroType = Any  # a name, an object or a list, as JSON has it

MICROS_A_DAY = 86_400_000_000
YEAR_1_MICROS = -62_135_596_800_000_000
YEAR_9999_MICROS = 253_402_300_799_999_999  # the last microsecond of it
YEAR_1_DAYS, YEAR_9999_DAYS = -719_162, 2_932_896
INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)


class Op(IntEnum):
    """What a node writes; its parameters a, b, c, d stand beside each value in ``_avro.h``."""

    CONST = 0
    BOOL = 1
    LONG64 = 2
    INT32 = 3
    INT = 4
    FLOAT = 5
    DOUBLE = 6
    BYTES = 7
    FIXED = 8
    UUID = 9
    DECIMAL = 10
    ENUM = 11
    ARRAY = 12
    MAP = 13
    RECORD = 14
    DICTIONARY = 15


class Layout(IntEnum):
    """How the Arrow array that a node reads lies in memory."""

    NONE = 0
    I8 = 1
    I16 = 2
    I32 = 3
    I64 = 4
    U8 = 5
    U16 = 6
    U32 = 7
    U64 = 8
    F32 = 9
    F64 = 10
    BITS = 11
    VAR32 = 12
    VAR64 = 13
    FIXED = 14
    DEC32 = 15
    DEC64 = 16
    DEC128 = 17
    DEC256 = 18
    LIST32 = 19
    LIST64 = 20
    LIST_FIXED = 21
    STRUCT = 22


class NotCovered(Exception):
    """The pairing has no plan; its text names the field and why."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. ``column`` is the index among the parent's Arrow children (-1: a constant needs none).

    ``value_branch`` and ``null_branch`` are the encoded union branches (one byte each; -1: no union, null refused).
    ``const`` holds a constant's bytes, ``symbols`` an enum's.
    """

    op: Op
    path: str
    layout: Layout = Layout.NONE
    column: int = -1
    value_branch: int = -1
    null_branch: int = -1
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    children: tuple[Node, ...] = ()
    const: bytes = b""
    symbols: tuple[str, ...] = ()

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in preorder: the order of the kernel's node numbers."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Plan:
    """The tree, and the schema that batches are cast to before it is walked."""

    root: Node
    schema: pa.Schema
    columns: tuple[int, ...]  # of the page's columns, those that are read, in the order of `schema`
    as_is: bool  # the page's columns are already those of `schema`

    def words(self) -> tuple[bytes, bytes]:
        """The tree as the kernel's program: int64 words in preorder, and the bytes that they point into."""
        blob = bytearray()
        words: list[int] = []
        for node in self.root.walk():
            a, b = node.a, node.b
            if node.op is Op.CONST:
                a, b = len(blob), len(node.const)
                blob += node.const
            elif node.op is Op.ENUM:
                a = _put_symbols(blob, node.symbols)
            subtree = sum(1 for _ in node.walk())
            words += (node.op, node.layout, node.column, len(node.children), subtree)
            words += (node.value_branch, node.null_branch, a, b, node.c, node.d)
        return np.array(words, dtype=np.int64).tobytes(), bytes(blob)


def _put_symbols(blob: bytearray, symbols: Sequence[str]) -> int:
    """The symbols' bytes, then their table sorted by (length, bytes); the table's place in `blob`."""
    entries = []
    for index, symbol in enumerate(symbols):
        text = symbol.encode()
        entries.append((len(text), text, len(blob), index))
        blob += text
    at = len(blob)
    blob += struct.pack("<i", len(entries))
    for size, _, start, index in sorted(entries):
        blob += struct.pack("<iii", size, start, index)
    return at


# --- Avro schemas ---------------------------------------------------------------------------------------------------


class Names:
    """The named types of one parsed schema, by full name."""

    def __init__(self, schema: AvroType) -> None:
        self.types: dict[str, AvroType] = {}
        self.schema = fastavro.parse_schema(schema, named_schemas=self.types, _force=True)

    def resolve(self, avro: AvroType) -> AvroType:
        """`avro` with a name of a named type replaced by its definition."""
        if isinstance(avro, str) and avro in self.types:
            return self.types[avro]
        if isinstance(avro, dict) and isinstance(avro["type"], dict | list):
            return self.resolve(avro["type"])
        return avro


def kind_of(avro: AvroType) -> tuple[str, str, Mapping[str, Any]]:
    """(type, logical type or '', properties) of a resolved schema that is not a union."""
    if isinstance(avro, str):
        return avro, "", {}
    return avro["type"], avro.get("logicalType", ""), avro


def source_column(field: Mapping[str, Any], names: Mapping[str, int]) -> int | None:
    """The index of the column that an Avro field takes its values from: by `column`, or without that by its own name or
    an alias. The column of a field that names one is no other, also where it is gone."""
    if "column" in field:
        return names.get(field["column"])
    return next((names[name] for name in (field["name"], *field.get("aliases", ())) if name in names), None)


# --- compilation ----------------------------------------------------------------------------------------------------


def compile_plan(avro_schema: AvroType, arrow_schema: pa.Schema) -> Plan:
    """The plan for rows of `arrow_schema` as `avro_schema` (a record); NotCovered where only fastavro can do it."""
    names = Names(avro_schema)
    record = names.resolve(names.schema)
    if kind_of(record)[0] != "record":
        raise NotCovered("the schema is not a record")
    compiler = _Compiler(names)
    by_name = {name: index for index, name in enumerate(arrow_schema.names)}
    used: dict[int, int] = {}
    fields: list[pa.Field] = []
    children = []
    for field in record["fields"]:
        index = source_column(field, by_name)
        if index is None:
            children.append(compiler.default(field, ""))
            continue
        node, canonical = compiler.node(field["type"], arrow_schema.field(index).type, field["name"])
        if index in used and fields[used[index]].type != canonical:
            raise NotCovered(f"column {arrow_schema.names[index]} is used in two ways")
        if index not in used:
            used[index] = len(fields)
            fields.append(arrow_schema.field(index).with_type(canonical))
        children.append(replace(node, column=used[index]))
    root = Node(Op.RECORD, "", Layout.STRUCT, children=tuple(children))
    schema = pa.schema(fields)
    return Plan(root, schema, tuple(used), not fields or schema.equals(arrow_schema))


def check_type(names: Names, avro: AvroType, arrow: pa.DataType) -> None:
    """NotCovered unless a value of the Arrow type has a form as `avro` (null aside)."""
    _Compiler(names).node(avro, arrow, "value")


_INTEGERS = {
    pa.int8(): Layout.I8,
    pa.int16(): Layout.I16,
    pa.int32(): Layout.I32,
    pa.int64(): Layout.I64,
    pa.uint8(): Layout.U8,
    pa.uint16(): Layout.U16,
    pa.uint32(): Layout.U32,
    pa.uint64(): Layout.U64,
}
_MICROS = {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}
_MILLIS = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}


def _integer(layout: Layout, path: str, low_high: tuple[int, int], scale: tuple[int, int] = (1, 1)) -> Node:
    return Node(Op.INT, path, layout, a=scale[0], b=scale[1], c=low_high[0], d=low_high[1])


class _Compiler:
    """Pairs types; every method gives the node and the Arrow type that the column must be cast to for it."""

    def __init__(self, names: Names) -> None:
        self.names = names

    def default(self, field: Mapping[str, Any], prefix: str) -> Node:
        path = prefix + field["name"]
        if "default" not in field:
            raise NotCovered(f"{path} has neither a column nor a default")
        out = io.BytesIO()
        # The first branch of a union is the one that its default is of.
        record = {"type": "record", "name": "Default", "fields": [dict(field, name="value")]}
        fastavro.schemaless_writer(out, fastavro.parse_schema(record, named_schemas=dict(self.names.types)), {})
        return Node(Op.CONST, path, const=out.getvalue())

    def node(self, avro: AvroType, arrow: pa.DataType, path: str) -> tuple[Node, pa.DataType]:
        avro = self.names.resolve(avro)
        if isinstance(arrow, pa.BaseExtensionType):
            arrow = arrow.storage_type
        if pa.types.is_dictionary(arrow):
            child, values = self.node(avro, arrow.value_type, path)
            node = Node(Op.DICTIONARY, path, _INTEGERS[arrow.index_type], children=(child,))
            return node, arrow if values == arrow.value_type else pa.dictionary(arrow.index_type, values)
        if not isinstance(avro, list):
            return self.value(avro, arrow, path)
        values = [branch for branch in avro if self.names.resolve(branch) != "null"]
        if len(values) > 1:
            raise NotCovered(f"{path} is a union of several types")
        null = next((i for i, branch in enumerate(avro) if self.names.resolve(branch) == "null"), None)
        null_branch = -1 if null is None else 2 * null
        if pa.types.is_null(arrow):
            if null is None:
                raise NotCovered(f"{path} is never null, its column always")
            return Node(Op.CONST, path, const=bytes([null_branch])), arrow
        if not values:
            raise NotCovered(f"{path} is always null, its column is not")
        node, canonical = self.value(self.names.resolve(values[0]), arrow, path)
        return replace(node, value_branch=2 * avro.index(values[0]), null_branch=null_branch), canonical

    def value(self, avro: AvroType, arrow: pa.DataType, path: str) -> tuple[Node, pa.DataType]:
        kind, logical, properties = kind_of(avro)
        match kind:
            case "null" if pa.types.is_null(arrow):
                return Node(Op.CONST, path), arrow
            case "boolean" if pa.types.is_boolean(arrow):
                return Node(Op.BOOL, path, Layout.BITS), arrow
            case "int" | "long":
                return self.integer(kind, logical, arrow, path), arrow
            case "float" | "double":
                return self.floating(kind, arrow, path)
            case "string" | "bytes":
                if logical == "decimal" and kind == "bytes":
                    return self.decimal(properties, arrow, path, 0)
                return self.variable(kind, logical, arrow, path)
            case "fixed":
                if logical == "decimal":
                    return self.decimal(properties, arrow, path, properties["size"])
                if pa.types.is_fixed_size_binary(arrow) and arrow.byte_width == properties["size"]:
                    return Node(Op.FIXED, path, Layout.FIXED, a=arrow.byte_width), arrow
            case "enum":
                layout, canonical = _variable_layout(arrow)
                if layout is not None:
                    return Node(Op.ENUM, path, layout, symbols=tuple(properties["symbols"])), canonical
            case "array":
                return self.array(properties, arrow, path)
            case "map" if pa.types.is_map(arrow):
                key, key_type = self.value("string", arrow.key_type, path + "{}")
                item, item_type = self.node(properties["values"], arrow.item_type, path + "{}")
                children = (replace(key, column=0), replace(item, column=1))
                same = (key_type, item_type) == (arrow.key_type, arrow.item_type)
                return Node(Op.MAP, path, Layout.LIST32, children=children), (
                    arrow if same else pa.map_(key_type, item_type)
                )
            case "record" if pa.types.is_struct(arrow):
                return self.record(properties, arrow, path)
        raise NotCovered(f"{path}: {arrow} as {logical or kind}")

    def integer(self, kind: str, logical: str, arrow: pa.DataType, path: str) -> Node:
        limits = INT32 if kind == "int" else INT64
        t = pa.types
        match logical:
            case "date" if t.is_date32(arrow):
                return _integer(Layout.I32, path, (YEAR_1_DAYS, YEAR_9999_DAYS))
            case "date" if t.is_date64(arrow):
                return _integer(Layout.I64, path, (YEAR_1_DAYS, YEAR_9999_DAYS), (1, 86_400_000))
            case "time-micros" | "time-millis" if t.is_time(arrow):
                micros = logical == "time-micros"
                layout = Layout.I32 if t.is_time32(arrow) else Layout.I64
                top = MICROS_A_DAY if micros else MICROS_A_DAY // 1000
                return _integer(layout, path, (0, top - 1), (_MICROS if micros else _MILLIS)[arrow.unit])
            case "timestamp-micros" | "local-timestamp-micros" if t.is_timestamp(arrow):
                return _integer(Layout.I64, path, (YEAR_1_MICROS, YEAR_9999_MICROS), _MICROS[arrow.unit])
            case "timestamp-millis" | "local-timestamp-millis" if t.is_timestamp(arrow):
                low, high = YEAR_1_MICROS // 1000, YEAR_9999_MICROS // 1000
                return _integer(Layout.I64, path, (low, high), _MILLIS[arrow.unit])
        if t.is_duration(arrow) and kind == "long":
            return _integer(Layout.I64, path, limits, _MICROS[arrow.unit])
        if arrow not in _INTEGERS or logical in _TEMPORAL:
            raise NotCovered(f"{path}: {arrow} as {logical or kind}")
        source = _INTEGERS[arrow]
        if source is Layout.I64 and kind == "long":
            return Node(Op.LONG64, path, source)
        if source is Layout.I32:
            return Node(Op.INT32, path, source)
        return _integer(source, path, limits)

    def floating(self, kind: str, arrow: pa.DataType, path: str) -> tuple[Node, pa.DataType]:
        op = Op.FLOAT if kind == "float" else Op.DOUBLE
        if pa.types.is_float16(arrow):
            arrow = pa.float32()
        if pa.types.is_float32(arrow):
            return Node(op, path, Layout.F32), arrow
        if pa.types.is_float64(arrow) and op is Op.DOUBLE:
            return Node(op, path, Layout.F64), arrow
        if arrow in _INTEGERS:
            return Node(op, path, _INTEGERS[arrow]), arrow
        raise NotCovered(f"{path}: {arrow} as {kind}")

    def variable(self, kind: str, logical: str, arrow: pa.DataType, path: str) -> tuple[Node, pa.DataType]:
        if pa.types.is_fixed_size_binary(arrow):
            if kind == "bytes":
                return Node(Op.FIXED, path, Layout.FIXED, a=arrow.byte_width, b=1), arrow
            if logical == "uuid" and arrow.byte_width == 16:
                return Node(Op.UUID, path, Layout.FIXED, a=16), arrow
        layout, canonical = _variable_layout(arrow)
        if layout is None:
            raise NotCovered(f"{path}: {arrow} as {logical or kind}")
        return Node(Op.BYTES, path, layout, a=int(kind == "string")), canonical

    def decimal(
        self, properties: Mapping[str, Any], arrow: pa.DataType, path: str, size: int
    ) -> tuple[Node, pa.DataType]:
        precision, scale = properties["precision"], properties.get("scale", 0)
        if arrow in _INTEGERS and scale == 0:
            return Node(Op.DECIMAL, path, _INTEGERS[arrow], a=precision, b=size), arrow
        if arrow in _INTEGERS:
            arrow = pa.decimal128(20)
        if not pa.types.is_decimal(arrow):
            raise NotCovered(f"{path}: {arrow} as decimal")
        if arrow.scale > scale:
            raise NotCovered(f"{path}: scale {arrow.scale} in scale {scale}")
        if arrow.scale < scale:
            digits = arrow.precision + scale - arrow.scale
            if digits > 76:
                raise NotCovered(f"{path}: more than 76 digits")
            arrow = pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale)
        layout = {32: Layout.DEC32, 64: Layout.DEC64, 128: Layout.DEC128, 256: Layout.DEC256}[arrow.bit_width]
        return Node(Op.DECIMAL, path, layout, a=precision, b=size), arrow

    def array(self, properties: Mapping[str, Any], arrow: pa.DataType, path: str) -> tuple[Node, pa.DataType]:
        t = pa.types
        if not (t.is_list(arrow) or t.is_large_list(arrow) or t.is_fixed_size_list(arrow)):
            raise NotCovered(f"{path}: {arrow} as array")
        item, item_type = self.node(properties["items"], arrow.value_type, path + "[]")
        children = (replace(item, column=0),)
        same = item_type == arrow.value_type
        if t.is_fixed_size_list(arrow):
            node = Node(Op.ARRAY, path, Layout.LIST_FIXED, a=arrow.list_size, children=children)
            return node, arrow if same else pa.list_(item_type, arrow.list_size)
        if t.is_large_list(arrow):
            node = Node(Op.ARRAY, path, Layout.LIST64, children=children)
            return node, arrow if same else pa.large_list(item_type)
        return Node(Op.ARRAY, path, Layout.LIST32, children=children), arrow if same else pa.list_(item_type)

    def record(self, properties: Mapping[str, Any], arrow: pa.DataType, path: str) -> tuple[Node, pa.DataType]:
        fields = [arrow.field(i) for i in range(arrow.num_fields)]
        types = [f.type for f in fields]
        by_name = {f.name: i for i, f in enumerate(fields)}
        children = []
        seen: set[int] = set()
        for field in properties["fields"]:
            index = source_column(field, by_name)
            if index is None:
                children.append(self.default(field, path + "."))
                continue
            node, canonical = self.node(field["type"], fields[index].type, f"{path}.{field['name']}")
            if index in seen and canonical != types[index]:
                raise NotCovered(f"{path}.{field['name']} is used in two ways")
            seen.add(index)
            types[index] = canonical
            children.append(replace(node, column=index))
        same = all(f.type == t for f, t in zip(fields, types, strict=True))
        struct_type = arrow if same else pa.struct([pa.field(f.name, t) for f, t in zip(fields, types, strict=True)])
        return Node(Op.RECORD, path, Layout.STRUCT, children=tuple(children)), struct_type


_TEMPORAL = frozenset(
    f"{prefix}{kind}"
    for prefix in ("", "local-")
    for kind in ("date", "time-millis", "time-micros", "timestamp-millis", "timestamp-micros")
)


def _variable_layout(arrow: pa.DataType) -> tuple[Layout | None, pa.DataType]:
    t = pa.types
    if t.is_string(arrow) or t.is_binary(arrow):
        return Layout.VAR32, arrow
    if t.is_large_string(arrow) or t.is_large_binary(arrow):
        return Layout.VAR64, arrow
    if t.is_string_view(arrow):
        return Layout.VAR64, pa.large_string()
    if t.is_binary_view(arrow):
        return Layout.VAR64, pa.large_binary()
    return None, arrow
