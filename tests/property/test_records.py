"""Records are framed as Kafka's own clients read them, partitioned as they partition, and alike by every kernel."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from aiokafka.partitioner import murmur2 as reference_murmur2
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producer.encoding import native
from producer.encoding.arrow_avro import AvroEncoder, Kernel
from producer.encoding.checksums import crc32c, murmur2
from producer.encoding.records import RecordBlock, RecordEncoder
from producer.errors import EncodeError, RecordTooLargeError, SchemaIncompatibleError

KERNELS: list[Kernel] = ["c", "numpy", "fastavro"]
VALUE = {
    "type": "record",
    "name": "t",
    "fields": [{"name": "id", "type": "long"}, {"name": "text", "type": ["null", "string"], "default": None}],
}
KEY = {"type": "record", "name": "t_key", "fields": [{"name": "id", "type": "long"}]}
HEADERS = [("source", b"shop"), ("", b""), ("ключ", bytes(range(256)))]

rows = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.none() | st.text(max_size=200)), max_size=60)


def batch_of(values: list[tuple[int, str | None]]) -> pa.RecordBatch:
    ids, texts = ([v[0] for v in values], [v[1] for v in values])
    return pa.record_batch({"id": pa.array(ids, pa.int64()), "text": pa.array(texts, pa.string())})


def encoder(kernel: Kernel, schema: pa.Schema, *, keyed: bool = True) -> RecordEncoder:
    key = AvroEncoder(KEY, schema, prefix=b"\0\0\0\0\1", kernel=kernel) if keyed else None
    return RecordEncoder(key, AvroEncoder(VALUE, schema, prefix=b"\0\0\0\0\2", kernel=kernel), stream="shop")


def read_back(block: RecordBlock) -> list[Any]:
    """The block's records as aiokafka reads them, behind a header of aiokafka's own making."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=0,
    )
    builder.append(0, timestamp=block.timestamp_ms, key=None, value=b"", headers=[])
    header = bytearray(builder.build())[:61]
    raw = header + block.records
    raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
    raw[23:27] = (block.count - 1).to_bytes(4, "big")
    raw[57:61] = block.count.to_bytes(4, "big")
    raw[17:21] = crc32c(bytes(raw[21:])).to_bytes(4, "big")
    batch = DefaultRecordBatch(bytes(raw))
    assert batch.validate_crc()
    return list(batch)


def expected(schema: Any, prefix: bytes, row: dict[str, Any]) -> bytes:
    out = io.BytesIO(prefix)
    out.seek(len(prefix))
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=rows, partitions=st.integers(1, 5), limit=st.integers(1300, 3000), with_headers=st.booleans())
def test_every_record_is_read_back_in_order_on_the_partition_of_its_key(
    kernel: Kernel,
    keyed: bool,
    values: list[tuple[int, str | None]],
    partitions: int,
    limit: int,
    with_headers: bool,
) -> None:
    batch = batch_of(values)
    headers = HEADERS if with_headers else []
    blocks = encoder(kernel, batch.schema, keyed=keyed).encode(
        batch, partitions=partitions, max_block_bytes=limit, timestamp_ms=1_700_000_000_123, headers=headers
    )
    wanted: dict[int, list[tuple[bytes | None, bytes]]] = {}
    for number, text in values:
        key = expected(KEY, b"\0\0\0\0\1", {"id": number}) if keyed else None
        partition = (reference_murmur2(key) & 0x7FFFFFFF) % partitions if keyed else 0
        wanted.setdefault(partition, []).append((key, expected(VALUE, b"\0\0\0\0\2", {"id": number, "text": text})))
    found: dict[int, list[tuple[bytes | None, bytes]]] = {}
    for block in blocks:
        assert len(block.records) <= limit
        records = read_back(block)
        assert [record.offset for record in records] == list(range(block.count))
        for record in records:
            assert record.timestamp == 1_700_000_000_123
            assert record.headers == headers
            found.setdefault(block.partition, []).append((record.key, record.value))
    assert found == wanted
    assert [block.partition for block in blocks] == sorted(block.partition for block in blocks)


@settings(max_examples=60, deadline=None)
@given(values=rows, partitions=st.integers(1, 4), limit=st.integers(1000, 2000))
def test_numpy_cuts_the_same_blocks_as_the_kernel(
    values: list[tuple[int, str | None]], partitions: int, limit: int
) -> None:
    batch = batch_of(values)
    made = [
        encoder(kernel, batch.schema).encode(batch, partitions=partitions, max_block_bytes=limit, timestamp_ms=0)
        for kernel in ("c", "numpy")
    ]
    assert [[(b.partition, b.count, bytes(b.records)) for b in blocks] for blocks in made[:1]] == [
        [(b.partition, b.count, bytes(b.records)) for b in blocks] for blocks in made[1:]
    ]


def test_a_block_of_many_records_is_cut_at_the_same_record_by_both() -> None:
    batch = batch_of([(number, "x" * (number % 7)) for number in range(30_000)])
    for limit in (100_000, 262_143, 1_000_000):
        c, numpy = (
            encoder(kernel, batch.schema).encode(batch, partitions=3, max_block_bytes=limit, timestamp_ms=0)
            for kernel in ("c", "numpy")
        )
        assert [(b.partition, b.count) for b in c] == [(b.partition, b.count) for b in numpy]
        assert b"".join(b.records for b in c) == b"".join(b.records for b in numpy)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_tombstone_has_the_key_and_a_null_value(kernel: Kernel) -> None:
    records = encoder(kernel, batch_of([]).schema)
    keys = pa.record_batch({"id": pa.array([5, -7], pa.int64())})
    blocks = records.tombstones(keys, partitions=1, max_block_bytes=1000, timestamp_ms=3, headers=HEADERS[:1])
    (block,) = blocks
    assert [(r.key, r.value, r.timestamp) for r in read_back(block)] == [
        (expected(KEY, b"\0\0\0\0\1", {"id": number}), None, 3) for number in (5, -7)
    ]


def test_a_tombstone_without_a_key_is_refused() -> None:
    records = encoder("c", batch_of([]).schema, keyed=False)
    with pytest.raises(EncodeError, match="needs a key"):
        records.tombstones(batch_of([(1, None)]), partitions=1, max_block_bytes=1000, timestamp_ms=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_record_over_the_limit_alone_is_named_with_its_key_size_and_row(kernel: Kernel) -> None:
    batch = batch_of([(1, "a"), (42, "x" * 5000), (3, "b")])
    with pytest.raises(RecordTooLargeError, match="id=42") as caught:
        encoder(kernel, batch.schema).encode(batch, partitions=2, max_block_bytes=4000, timestamp_ms=0)
    assert (caught.value.row, caught.value.key, caught.value.stream) == (1, "id=42", "shop")
    # length, attributes and deltas, key's length, key, value's length, value, count of headers
    assert caught.value.size == 2 + 3 + 1 + (5 + 1) + 2 + (5 + 1 + 1 + 2 + 5000) + 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_record_of_exactly_the_limit_is_taken_and_one_byte_less_is_not(kernel: Kernel) -> None:
    batch = batch_of([(1, "x" * 1000)])
    records = encoder(kernel, batch.schema)
    (block,) = records.encode(batch, partitions=1, max_block_bytes=10**6, timestamp_ms=0)
    size = len(block.records)
    assert len(records.encode(batch, partitions=1, max_block_bytes=size, timestamp_ms=0)) == 1
    with pytest.raises(RecordTooLargeError) as caught:
        records.encode(batch, partitions=1, max_block_bytes=size - 1, timestamp_ms=0)
    assert caught.value.size == size


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_page_gives_keys_values_and_partitions_row_by_row(kernel: Kernel) -> None:
    batch = batch_of([(number, None) for number in range(50)])
    page = encoder(kernel, batch.schema).encoded_page(batch, 7)
    assert page.keys is not None
    assert page.values is not None
    assert len(page) == 50
    for row in range(50):
        key = page.keys.row(row)
        assert key == expected(KEY, b"\0\0\0\0\1", {"id": row})
        assert page.values.row(row) == expected(VALUE, b"\0\0\0\0\2", {"id": row, "text": None})
        assert page.partitions[row] == (reference_murmur2(key) & 0x7FFFFFFF) % 7


@pytest.mark.parametrize("kernel", ["c", "numpy"])
def test_a_value_without_a_form_is_named_by_key_field_and_row(kernel: Kernel) -> None:
    schema = {
        "type": "record",
        "name": "t",
        "fields": [{"name": "id", "type": "long"}, {"name": "text", "type": "string"}],
    }
    batch = batch_of([(1, "a"), (9, None)])
    key = AvroEncoder(KEY, batch.schema, kernel=kernel)
    records = RecordEncoder(key, AvroEncoder(schema, batch.schema, kernel=kernel), stream="shop")
    with pytest.raises(EncodeError, match=r"key id=9.*field text is null") as caught:
        records.encode(batch, partitions=1, max_block_bytes=1000, timestamp_ms=0)
    assert (caught.value.row, caught.value.key, caught.value.field) == (1, "id=9", "text")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=30))
def test_murmur2_is_that_of_the_java_client(keys: list[bytes]) -> None:
    offsets = np.cumsum([0, *map(len, keys)], dtype=np.int64)
    wanted = [reference_murmur2(key) for key in keys]
    for compiled in (True, False):
        found = murmur2(b"".join(keys), offsets, compiled=compiled)
        assert found.view(np.uint32).tolist() == [value & 0xFFFFFFFF for value in wanted]


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_crc32c_is_aiokafkas_in_hardware_and_by_table_and_can_go_on(data: bytes, cut: int) -> None:
    wanted = calc_crc32c(data)
    assert crc32c(data) == wanted
    assert native.kernel.crc32c(data[cut:], native.kernel.crc32c(data[:cut])) == wanted
    assert native.kernel.crc32c(data, 0, False) == wanted
    assert native.kernel.crc32c(memoryview(data)[cut:], native.kernel.crc32c(data[:cut], 0, False), False) == wanted


def test_without_the_kernel_numpy_does_the_same() -> None:
    batch = batch_of([(number, "ü" * number) for number in range(20)])
    kernel = encoder("auto", batch.schema)
    assert kernel.value.kernel == "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernel", None)
        numpy = encoder("auto", batch.schema)
        assert numpy.value.kernel == "numpy"
        found = numpy.encode(batch, partitions=3, max_block_bytes=300, timestamp_ms=0)
        assert crc32c(b"123456789") == 0xE3069283
        with pytest.raises(SchemaIncompatibleError, match="not built"):
            encoder("c", batch.schema)
    wanted = kernel.encode(batch, partitions=3, max_block_bytes=300, timestamp_ms=0)
    assert [(b.partition, b.count, bytes(b.records)) for b in found] == [
        (b.partition, b.count, bytes(b.records)) for b in wanted
    ]


def test_crc32c_of_the_standard_check_string() -> None:
    assert crc32c(b"123456789") == 0xE3069283
