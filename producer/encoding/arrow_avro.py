"""Owns the encoding of Arrow batches as Avro data: byte for byte what fastavro's schemaless writer makes of each row.

Three forms with one result: the C kernel (no Python object for a value), numpy (whole columns at a time, where the
kernel was not built) and fastavro (row by row, for schemas that the first two do not cover). Timestamps finer than
the schema's unit are cut down to it (floor). https://avro.apache.org/docs/1.12.0/specification/#binary-encoding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from producer.encoding import native
from producer.encoding.plan import (
    YEAR_1_DAYS,
    YEAR_1_MICROS,
    YEAR_9999_DAYS,
    YEAR_9999_MICROS,
    AvroType,
    Names,
    Node,
    NotCovered,
    Op,
    Plan,
    compile_plan,
    source_column,
)
from producer.encoding.shown import shown
from producer.errors import EncodeError, SchemaIncompatibleError

Kernel = Literal["auto", "c", "numpy", "fastavro"]

#: The kernel's failures (``enum failure`` in ``_avro.h``), as reasons.
FAILURES = {1: "null", 2: "range", 3: "symbol", 4: "decimal", 5: "utf8", 6: "layout", 8: "large"}


@dataclass(frozen=True, slots=True)
class EncodedColumn:
    """The data of n rows one after the other: row i is ``data[offsets[i]:offsets[i + 1]]`` (n + 1 int64 offsets)."""

    data: memoryview
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> bytes:
        """One row's bytes, its prefix included."""
        return bytes(self.data[self.offsets[index] : self.offsets[index + 1]])


class AvroEncoder:
    """Encodes batches of `arrow_schema` as records of `avro_schema`, each behind `prefix` (the registry's framing).

    ``kernel`` chooses the form; "auto" takes the fastest that there is. SchemaIncompatibleError where a field has
    neither column nor default, or (with "c" or "numpy") where that form does not cover the schemas. `encode` may be
    called from several threads at once.
    """

    def __init__(
        self, avro_schema: AvroType, arrow_schema: pa.Schema, *, prefix: bytes = b"", kernel: Kernel = "auto"
    ) -> None:
        self.avro_schema = avro_schema
        self.arrow_schema = arrow_schema
        self.prefix = prefix
        self.names = Names(avro_schema)
        self.plan: Plan | None = None
        self.program: Any = None
        self._bytes_a_row = 64.0
        if kernel == "fastavro":
            self.kernel: Kernel = "fastavro"
            return
        if kernel == "c" and native.kernel is None:
            raise SchemaIncompatibleError("the C kernel is not built")
        try:
            self.plan = compile_plan(avro_schema, arrow_schema)
        except NotCovered as gap:
            if kernel != "auto":
                raise SchemaIncompatibleError(f"not covered by the {kernel} encoder: {gap}") from None
            self.kernel = "fastavro"
            return
        self.nodes: tuple[Node, ...] = tuple(self.plan.root.walk())
        self.kernel = "numpy" if kernel == "numpy" or native.kernel is None else "c"
        if self.kernel == "c":
            self.program = native.kernel.program(*self.plan.words())

    def encode(self, batch: pa.RecordBatch) -> EncodedColumn:
        """All rows of `batch`; EncodeError names the field and the row of the first value that has no form."""
        if self.plan is None:
            return self._encode_rows(batch)
        canonical = self.canonical(batch)
        if self.kernel == "c":
            return self._encode_c(canonical)
        return self._encode_numpy(self.plan.root, canonical)

    def canonical(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns that the plan reads, cast to the types that it reads them in (most are so already)."""
        assert self.plan is not None
        self._expect(batch.schema)
        try:
            batch.validate()  # by column, not by value: the kernel relies on the buffers' sizes
        except pa.ArrowInvalid as error:
            raise EncodeError(f"malformed Arrow data: {error}") from None
        if self.plan.as_is:
            return batch
        columns = [
            batch.column(index) if batch.column(index).type == field.type else batch.column(index).cast(field.type)
            for index, field in zip(self.plan.columns, self.plan.schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.plan.schema)

    def _expect(self, found: pa.Schema) -> None:
        """Names and types must be those compiled for; whether a column may be null shows in its values."""
        if not found.equals(self.arrow_schema) and (found.names, found.types) != (
            self.arrow_schema.names,
            self.arrow_schema.types,
        ):
            raise SchemaIncompatibleError(_difference(self.arrow_schema, found))

    def refuse(self, node: Node, row: int, reason: str) -> NoReturn:
        """Raises the EncodeError for what a kernel found."""
        raise EncodeError(
            f"row {row}: field {node.path or 'record'} {_explain(node, reason)}", field=node.path, row=row
        )

    def key_text(self, batch: pa.RecordBatch, row: int) -> str:
        """A row's values of the columns that this schema takes, as ``id=5, day=2024-01-01``: for messages."""
        by_name = {name: index for index, name in enumerate(batch.schema.names)}
        columns = [source_column(field, by_name) for field in self.names.resolve(self.names.schema)["fields"]]
        return ", ".join(f"{batch.schema.names[i]}={shown(batch.column(i)[row])}" for i in columns if i is not None)

    def _encode_c(self, batch: pa.RecordBatch) -> EncodedColumn:
        offsets = np.empty(batch.num_rows + 1, dtype=np.int64)
        _, array = batch.__arrow_c_array__()
        hint = int(self._bytes_a_row * batch.num_rows * 1.1)
        try:
            data = native.kernel.encode(self.program, array, batch.num_rows, self.prefix, offsets, hint)
        except native.kernel.Failure as failure:
            code, node, row, _, _ = failure.args
            self.refuse(self.nodes[node], row, FAILURES[code])
        if batch.num_rows:
            self._bytes_a_row = len(data) / batch.num_rows
        return EncodedColumn(memoryview(data), offsets)

    def _encode_numpy(self, root: Node, batch: pa.RecordBatch) -> EncodedColumn:
        # Loaded where it is used: pyarrow.compute takes a good part of the time to start.
        from producer.encoding.columns import ColumnFault, encode_columns
        from producer.encoding.ragged import constant, join

        try:
            values = encode_columns(root, batch)
        except ColumnFault as fault:
            self.refuse(fault.node, fault.row, fault.reason)
        if self.prefix:
            values = join([constant(self.prefix, batch.num_rows), values], batch.num_rows)
        return EncodedColumn(values.data.data, values.offsets)

    def _encode_rows(self, batch: pa.RecordBatch) -> EncodedColumn:
        from producer.encoding.rows import encode_rows

        self._expect(batch.schema)
        parts: list[bytes] = []
        try:
            parts.extend(self.prefix + datum for datum in encode_rows(self.names, batch))
        except (ValueError, TypeError, OverflowError, ArithmeticError, AttributeError, KeyError) as error:
            raise EncodeError(f"row {len(parts)}: {error}", row=len(parts)) from None
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return EncodedColumn(memoryview(b"".join(parts)), offsets)


#: The ranges of dates and timestamps, in days, milliseconds and microseconds.
_YEARS = frozenset(
    [
        (YEAR_1_DAYS, YEAR_9999_DAYS),
        (YEAR_1_MICROS // 1000, YEAR_9999_MICROS // 1000),
        (YEAR_1_MICROS, YEAR_9999_MICROS),
    ]
)


def _explain(node: Node, reason: str) -> str:
    match reason:
        case "null":
            return "is null, and its Avro type is not nullable"
        case "range" if (node.c, node.d) in _YEARS:
            return "is infinite or outside the years 1 to 9999"
        case "range" if node.c or node.d:
            return f"is outside {node.c} to {node.d}{' after scaling' if (node.a, node.b) != (1, 1) else ''}"
        case "symbol":
            return f"is none of the enum's symbols ({', '.join(node.symbols[:10])})"
        case "decimal":
            return f"has more than {node.a} digits" + (f" or does not fit {node.b} bytes" if node.b else "")
        case "utf8":
            return "is not valid UTF-8"
        case "large":
            return "makes the record larger than 2 GiB"
    return (
        "is malformed Arrow data" if node.op is not Op.DICTIONARY else "has a dictionary index outside the dictionary"
    )


def _difference(expected: pa.Schema, found: pa.Schema) -> str:
    expected_types, found_types = (dict(zip(s.names, s.types, strict=True)) for s in (expected, found))
    changes: Sequence[str] = [
        f"{name}: {expected_types.get(name, 'absent')} became {found_types.get(name, 'absent')}"
        for name in dict.fromkeys([*expected_types, *found_types])
        if expected_types.get(name) != found_types.get(name)
    ]
    return "the page's columns differ from the table's: " + ("; ".join(changes) or "another order")
