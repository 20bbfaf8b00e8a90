"""What the encoders refuse and how they name it; schemas that are not derived: defaults, wide unions, narrowing."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import threading
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from producer.encoding.arrow_avro import AvroEncoder, Kernel
from producer.errors import EncodeError, SchemaIncompatibleError

VECTORISED: list[Kernel] = ["c", "numpy"]
KERNELS: list[Kernel] = [*VECTORISED, "fastavro"]


def record(avro: Any, **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "r", "fields": [{"name": "f", "type": avro, **more}]}


def encode(avro: Any, array: pa.Array, kernel: Kernel = "auto", **more: Any) -> list[bytes]:
    batch = pa.record_batch({"f": array})
    encoded = AvroEncoder(record(avro, **more), batch.schema, kernel=kernel).encode(batch)
    return [encoded.row(index) for index in range(len(encoded))]


def reference(avro: Any, values: list[Any], **more: Any) -> list[bytes]:
    schema = fastavro.parse_schema(record(avro, **more))
    out = []
    for value in values:
        target = io.BytesIO()
        fastavro.schemaless_writer(target, schema, value if value == {} else {"f": value})
        out.append(target.getvalue())
    return out


def logical(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "logicalType": name}


DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}
FIXED_DECIMAL = {"type": "fixed", "name": "d", "size": 3, "logicalType": "decimal", "precision": 6, "scale": 2}
ENUM = {"type": "enum", "name": "e", "symbols": ["a", "bb", "c"]}
INFINITY, MINUS_INFINITY = 2**63 - 1, -(2**63)


@pytest.mark.parametrize("kernel", VECTORISED)
@pytest.mark.parametrize(
    ("avro", "array", "reason"),
    [
        ("long", pa.array([1, None]), "is null"),
        ("string", pa.array(["x", None]), "is null"),
        (
            logical("long", "timestamp-micros"),
            pa.array([0, INFINITY], pa.timestamp("us", "UTC")),
            "infinite or outside the years",
        ),
        (
            logical("long", "timestamp-micros"),
            pa.array([0, MINUS_INFINITY], pa.timestamp("us", "UTC")),
            "infinite or outside the years",
        ),
        (
            logical("long", "timestamp-micros"),
            pa.array([0, INFINITY], pa.timestamp("s", "UTC")),
            "infinite or outside the years",
        ),
        (
            logical("long", "timestamp-micros"),
            pa.array([0, -62135596801], pa.timestamp("s", "UTC")),
            "infinite or outside the years",
        ),
        (
            logical("long", "local-timestamp-micros"),
            pa.array([0, 253402300800], pa.timestamp("s")),
            "infinite or outside the years",
        ),
        (
            logical("int", "date"),
            pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32()),
            "infinite or outside the years",
        ),
        (logical("int", "date"), pa.array([0, -719163], pa.int32()).cast(pa.date32()), "infinite or outside the years"),
        (logical("long", "time-micros"), pa.array([0, 86_400_000_000], pa.int64()).view(pa.time64("us")), "outside"),
        ("int", pa.array([1, 2**31]), "outside"),
        ("long", pa.array([1, 2**63], pa.uint64()), "outside"),
        (
            DECIMAL,
            pa.array([decimal.Decimal("99.99"), decimal.Decimal("100.00")], pa.decimal128(9, 2)),
            "more than 4 digits",
        ),
        (
            DECIMAL,
            pa.array([decimal.Decimal("-99.99"), decimal.Decimal("-100.00")], pa.decimal256(50, 2)),
            "more than 4",
        ),
        (FIXED_DECIMAL, pa.array([decimal.Decimal("0"), decimal.Decimal("-10000.00")], pa.decimal128(9, 2)), "3 bytes"),
        (ENUM, pa.array(["bb", "b"]), r"none of the enum's symbols \(a, bb, c\)"),
        ("string", pa.array([b"ok", b"\xff"]), "not valid UTF-8"),
        ("string", pa.array(["ü".encode(), b"a\xed\xa0\x80"]), "not valid UTF-8"),
    ],
)
def test_a_value_without_a_form_is_refused_with_its_field_and_row(
    avro: Any, array: pa.Array, reason: str, kernel: Kernel
) -> None:
    assert len(encode(avro, array.slice(0, 1), kernel)) == 1
    with pytest.raises(EncodeError, match=f"row 1: field f .*{reason}") as caught:
        encode(avro, array, kernel)
    assert (caught.value.field, caught.value.row) == ("f", 1)


@pytest.mark.parametrize("kernel", VECTORISED)
def test_a_value_deep_inside_is_named_by_its_path_and_the_row_of_the_page(kernel: Kernel) -> None:
    item = {"type": "record", "name": "i", "fields": [{"name": "n", "type": "long"}]}
    values = [None, [{"n": 1}, {"n": 2}], [], [{"n": 3}, {"n": None}]]
    array = pa.array(values, pa.list_(pa.struct([("n", pa.int64())])))
    with pytest.raises(EncodeError, match=r"row 3: field f\[\]\.n is null"):
        encode(["null", {"type": "array", "items": item}], array, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "text", ["\u0080", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"]
)
def test_every_edge_of_utf8_is_taken(text: str, kernel: Kernel) -> None:
    values = [before + text + after for before in ("", "a" * 31, "ж" * 9) for after in ("", "ж" * 5, "b" * 17)]
    assert encode("string", pa.array(values), kernel) == reference("string", values)


@pytest.mark.parametrize("kernel", VECTORISED)
@pytest.mark.parametrize(
    "raw",
    [
        b"\x80",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5",
        b"\xe2\x82",
    ],
)
def test_every_edge_outside_utf8_is_refused(raw: bytes, kernel: Kernel) -> None:
    for before in (b"a" * 40, "ж".encode() * 20, b"a" + "ж".encode() * 7, b""):
        for after in (b"", b"a" * 9, "ж".encode() * 9):
            with pytest.raises(EncodeError, match="UTF-8"):
                encode("string", pa.array([before + raw + after]), kernel)


@pytest.mark.parametrize("kernel", VECTORISED)
def test_a_character_torn_between_two_rows_is_refused(kernel: Kernel) -> None:
    with pytest.raises(EncodeError, match="row 0"):
        encode("string", pa.array([b"\xc3", b"\xbc"]), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("avro", "array", "values"),
    [
        ("int", pa.array([-5, 2**31 - 1]), [-5, 2**31 - 1]),
        ("long", pa.array([1, 255], pa.uint8()), [1, 255]),
        ("double", pa.array([1, 2**63 - 1]), [1, 2**63 - 1]),
        ("float", pa.array([16777217, 2**60 + 1]), [16777217, 2**60 + 1]),
        ("double", pa.array([0.1], pa.float32()), [float(np.float32(0.1))]),
        (["string", "null"], pa.array(["a", None]), ["a", None]),
        (["long"], pa.array([3]), [3]),
        (["null"], pa.nulls(2), [None, None]),
        ("null", pa.nulls(2), [None, None]),
        (["long", "null"], pa.nulls(1), [None]),
        ({"type": "array", "items": ["string", "null"]}, pa.array([[None], []]), [[None], []]),
        ({"type": "array", "items": "null"}, pa.array([[None], []]), [[None], []]),
        (DECIMAL | {"scale": 3, "precision": 8}, pa.array([decimal.Decimal("-1.28")]), [decimal.Decimal("-1.28")]),
        (
            DECIMAL | {"scale": 0, "precision": 19},
            pa.array([-128, 127, 128]),
            [decimal.Decimal(v) for v in (-128, 127, 128)],
        ),
        (DECIMAL, pa.array([7], pa.int8()), [decimal.Decimal(7)]),
        (
            FIXED_DECIMAL,
            pa.array([decimal.Decimal("-1.28"), decimal.Decimal("0.01")]),
            [decimal.Decimal("-1.28"), decimal.Decimal("0.01")],
        ),
        (ENUM, pa.array(["c", "a", "bb"], pa.large_string()), ["c", "a", "bb"]),
        ("bytes", pa.array([b"abc"], pa.binary(3)), [b"abc"]),
        (
            logical("long", "timestamp-millis"),
            pa.array([dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, dt.UTC)]),
            [dt.datetime(1969, 12, 31, 23, 59, 59, 999_000, dt.UTC)],
        ),
        (logical("int", "time-millis"), pa.array([dt.time(1, 2, 3, 4567)]), [dt.time(1, 2, 3, 4000)]),
        (
            logical("long", "timestamp-micros"),
            pa.array([dt.datetime(2024, 3, 31, 2, 30)]),
            [dt.datetime(2024, 3, 31, 2, 30, tzinfo=dt.UTC)],
        ),
    ],
)
def test_a_users_type_is_written_as_fastavro_writes_it(
    avro: Any, array: pa.Array, values: list[Any], kernel: Kernel
) -> None:
    assert encode(avro, array, kernel) == reference(avro, values)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_field_without_a_column_takes_its_default(kernel: Kernel) -> None:
    schema = {
        "type": "record",
        "name": "r",
        "fields": [
            {"name": "none", "type": ["null", "string"], "default": None},
            {"name": "f", "type": "long"},
            {"name": "text", "type": "string", "default": "é"},
            {"name": "list", "type": {"type": "array", "items": "int"}, "default": [1, 2]},
        ],
    }
    batch = pa.record_batch({"unused": ["x", "y"], "f": [1, 2]})
    encoded = AvroEncoder(schema, batch.schema, kernel=kernel).encode(batch)
    assert [encoded.row(i) for i in (0, 1)] == [
        b"\x00" + bytes([2 * n]) + b"\x04\xc3\xa9" + b"\x04\x02\x04\x00" for n in (1, 2)
    ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_record_of_defaults_alone_has_a_row_for_each_row(kernel: Kernel) -> None:
    batch = pa.record_batch({"unused": ["x", "y", "z"]})
    encoded = AvroEncoder(record("long", default=5), batch.schema, kernel=kernel).encode(batch)
    assert [encoded.row(i) for i in range(3)] == [b"\x0a"] * 3


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_column_can_fill_two_fields(kernel: Kernel) -> None:
    schema = {
        "type": "record",
        "name": "r",
        "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": "double", "column": "a"}],
    }
    batch = pa.record_batch({"a": [1]})
    assert AvroEncoder(schema, batch.schema, kernel=kernel).encode(batch).row(0) == b"\x02" + np.float64(1).tobytes()


@pytest.mark.parametrize(
    ("avro", "array", "values"),
    [
        (["null", "long", "string"], pa.array([1, None]), [1, None]),
        (["long", "string"], pa.array(["a"]), ["a"]),
        (["null", "long"], pa.ListArray.from_arrays([0, 1], [1]).slice(0, 0), []),
        ({"type": "array", "items": ["null", "long"]}, pa.array([[1, None]], pa.list_view(pa.int64())), [[1, None]]),
    ],
)
def test_what_the_fast_forms_do_not_cover_goes_through_fastavro(avro: Any, array: pa.Array, values: list[Any]) -> None:
    batch = pa.record_batch({"f": array})
    encoder = AvroEncoder(record(avro), batch.schema)
    assert encoder.kernel == "fastavro"
    assert encode(avro, array) == reference(avro, values)
    with pytest.raises(SchemaIncompatibleError, match="not covered"):
        AvroEncoder(record(avro), batch.schema, kernel="c")


def test_a_fastavro_refusal_names_the_row() -> None:
    with pytest.raises(EncodeError, match="row 1") as caught:
        encode("long", pa.array([1, None]), "fastavro")
    assert caught.value.row == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_page_of_other_columns_is_refused_with_what_changed(kernel: Kernel) -> None:
    encoder = AvroEncoder(record("long"), pa.schema([("f", pa.int64())]), kernel=kernel)
    with pytest.raises(SchemaIncompatibleError, match="f: int64 became string; g: absent became int64"):
        encoder.encode(pa.record_batch({"f": ["x"], "g": [1]}))


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_empty_page_gives_no_rows(kernel: Kernel) -> None:
    batch = pa.record_batch({"f": pa.array([], pa.int64())})
    encoded = AvroEncoder(record("long"), batch.schema, kernel=kernel).encode(batch)
    assert (len(encoded), bytes(encoded.data), encoded.offsets.tolist()) == (0, b"", [0])


def int32s(*values: int) -> pa.Buffer:
    return pa.py_buffer(np.array(values, dtype=np.int32).tobytes())


@pytest.mark.parametrize("kernel", VECTORISED)
def test_values_under_a_null_are_never_looked_at(kernel: Kernel) -> None:
    """Arrow says nothing about the values in a null's place."""
    validity = pa.py_buffer(b"\x05")
    strings = pa.Array.from_buffers(pa.string(), 3, [validity, int32s(0, 1, 3, 4), pa.py_buffer(b"a\xff\xffb")])
    assert encode(["null", "string"], strings, kernel) == [b"\x02\x02a", b"\x00", b"\x02\x02b"]
    numbers = pa.py_buffer(np.array([0, INFINITY, 1]).tobytes())
    timestamps = pa.Array.from_buffers(pa.timestamp("us"), 3, [validity, numbers])
    kind = ["null", logical("long", "local-timestamp-micros")]
    assert encode(kind, timestamps, kernel) == [b"\x02\x00", b"\x00", b"\x02\x02"]


@pytest.mark.parametrize("offsets", [(0, 5, 2, 9), (0, 9_000_000, 2, 9), (0, -9_000_000, 2, 9)])
def test_offsets_that_make_no_sense_are_refused_and_not_followed(offsets: tuple[int, ...]) -> None:
    strings = pa.Array.from_buffers(pa.string(), 3, [None, int32s(*offsets), pa.py_buffer(b"abcdefghi")])
    with pytest.raises(EncodeError, match="malformed"):
        encode("string", strings, "c")
    items = pa.array(range(9))
    lists = pa.Array.from_buffers(pa.list_(pa.int64()), 3, [None, int32s(*offsets)], children=[items])
    with pytest.raises(EncodeError, match="malformed"):
        encode({"type": "array", "items": "long"}, lists, "c")


def test_a_dictionary_index_outside_the_dictionary_is_refused() -> None:
    indices = pa.Array.from_buffers(pa.int8(), 1, [None, pa.py_buffer(b"\x05")])
    with pytest.raises(EncodeError, match="outside the dictionary"):
        encode("string", pa.DictionaryArray.from_arrays(indices, ["a"], safe=False), "c")


def test_one_encoder_serves_several_threads_at_once() -> None:
    batch = pa.record_batch({"f": pa.array(range(20_000))})
    encoder = AvroEncoder(record("long"), batch.schema, kernel="c")
    wanted = bytes(encoder.encode(batch).data)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.extend(bytes(encoder.encode(batch).data) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 80
