"""The vectorised encoders write what fastavro's schemaless writer writes, byte for byte."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producer.encoding.arrow_avro import AvroEncoder, Kernel
from producer.encoding.schema import derive_value_schema
from producer.errors import EncodeError
from producer.model import Dataset
from tests.property.encoding_cases import SCALARS, Case, Table, tables

KERNELS: list[Kernel] = ["c", "numpy", "fastavro"]
PREFIX = b"\x00\x00\x00\x00\x07"


def oracle(schema: Any, row: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, row)
    return out.getvalue()


def check(table: Table, kernel: Kernel) -> None:
    avro = derive_value_schema(Dataset("t", table.batch.schema, (), (), {}))
    parsed = fastavro.parse_schema(avro)
    names = [field["name"] for field in avro["fields"]]
    encoder = AvroEncoder(avro, table.batch.schema, prefix=PREFIX, kernel=kernel)
    encoded = encoder.encode(table.batch)
    assert encoder.kernel == kernel
    assert len(encoded) == len(table.rows)
    for index, row in enumerate(table.rows):
        assert encoded.row(index) == PREFIX + oracle(parsed, dict(zip(names, row, strict=True))), row


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables())
def test_every_kernel_writes_what_fastavro_writes(kernel: Kernel, table: Table) -> None:
    check(table, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", SCALARS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_each_type_alone_writes_what_fastavro_writes(name: str, kernel: Kernel, data: st.DataObject) -> None:
    case: Case = SCALARS[name]
    check(data.draw(tables(st.just(case), max_rows=20)), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_string_of_one_megabyte_is_written_whole(kernel: Kernel) -> None:
    values = ["é" * 500_000, "", "x" * 1_000_000]
    batch = pa.record_batch({"c0": values})
    check(Table(batch, [[value] for value in values]), kernel)


_pieces = st.lists(st.text(max_size=12).map(lambda t: t.encode("utf-8", "ignore")) | st.binary(max_size=3), max_size=6)


@pytest.mark.parametrize("kernel", ["c", "numpy"])
@settings(max_examples=400, deadline=None)
@given(pieces=_pieces)
def test_text_is_utf8_where_python_says_so(kernel: Kernel, pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    schema = {"type": "record", "name": "r", "fields": [{"name": "f", "type": "string"}]}
    batch = pa.record_batch({"f": [raw]})
    encoder = AvroEncoder(schema, batch.schema, kernel=kernel)
    try:
        raw.decode()
    except UnicodeDecodeError:
        with pytest.raises(EncodeError, match="UTF-8"):
            encoder.encode(batch)
    else:
        assert encoder.encode(batch).row(0).endswith(raw)
