"""Owns the claims about record batches: aiokafka's own reader parses them, and its sender's private interface is as
it was when `FinishedBatch` was written."""

from __future__ import annotations

import inspect
import os
from typing import Any

import aiokafka
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.producer.sender import Sender
from aiokafka.record.default_records import DefaultRecordBatch

from producer.sinks.record_batch import HEADER_BYTES, Codec, FinishedBatch
from tests.integration.kafka_rows import framed

CODECS: tuple[Codec, ...] = ("none", "gzip", "snappy", "lz4", "zstd")


def parsed(batch: FinishedBatch, producer_id: int = 7, epoch: int = 3, sequence: int = 11) -> DefaultRecordBatch:
    batch._set_producer_state(producer_id, epoch, sequence)
    return DefaultRecordBatch(bytes(batch._build()))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 3, 5000])
def test_aiokafkas_reader_parses_a_batch_of_every_codec(codec: Codec, count: int) -> None:
    records = b"".join(framed(i, b"k%d" % i, b"value " * 9, [("source", b"shop")]) for i in range(count))

    read = parsed(FinishedBatch(records, count, 1_700_000_000_123, codec=codec))

    assert read.validate_crc()
    assert (read.producer_id, read.producer_epoch, read.base_sequence) == (7, 3, 11)
    assert not read.is_transactional
    rows = list(read)
    assert [(r.offset, r.key, r.value, r.timestamp) for r in rows] == [
        (i, b"k%d" % i, b"value " * 9, 1_700_000_000_123) for i in range(count)
    ]
    assert rows[0].headers == [("source", b"shop")]


@pytest.mark.parametrize("codec", CODECS)
def test_records_that_do_not_shrink_are_kept_as_they_are(codec: Codec) -> None:
    records = framed(0, None, os.urandom(100))

    read = parsed(FinishedBatch(records, 1, 0, codec=codec))

    assert read.compression_type == 0
    assert [r.key for r in read] == [None]


@pytest.mark.parametrize("codec", CODECS)
def test_a_mix_of_dense_and_random_data_over_many_blocks_survives_every_codec(codec: Codec) -> None:
    value = os.urandom(150_000) + b"a" * 150_000

    assert [r.value for r in parsed(FinishedBatch(framed(0, b"k", value), 1, 0, codec=codec))] == [value]


def test_the_transactional_flag_is_set_on_demand() -> None:
    assert parsed(FinishedBatch(framed(0, b"k", b"v"), 1, 0, transactional=True)).is_transactional


def test_a_sequence_that_aiokafka_wraps_below_zero_goes_on_at_zero_as_in_java() -> None:
    batch = FinishedBatch(framed(0, b"k", b"v"), 1, 0)

    assert parsed(batch, sequence=-(2**31)).base_sequence == 0
    assert parsed(batch, sequence=-(2**31) + 5).base_sequence == 5


def test_a_batch_can_be_built_again_for_a_retry() -> None:
    batch = FinishedBatch(framed(0, b"k", b"v"), 1, 0)
    batch._set_producer_state(1, 0, 0)

    assert bytes(batch._build()) == bytes(batch._build())
    assert batch.size() == len(batch._build()) > HEADER_BYTES


def test_nothing_can_be_appended_to_a_finished_batch() -> None:
    batch = FinishedBatch(framed(0, b"k", b"v"), 1, 0)
    batch.close()

    assert batch.closed()
    batch.append(timestamp=None, key=b"k", value=b"v", headers=[])
    assert batch.record_count() == 1


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_private_interface_of_aiokafka_is_the_one_that_was_built_on() -> None:
    """An upgrade that changes any of this must be looked at: batches, failing all of them, and ending the sender."""
    assert aiokafka.__version__.startswith("0.14.")
    for name in ("append", "close", "closed", "size", "record_count", "_set_producer_state", "_build"):
        ours = [p for p in parameters(getattr(FinishedBatch, name)) if p != "self"]
        theirs = [p for p in parameters(getattr(BatchBuilder, name)) if p != "self"]
        assert ours == theirs, name
    assert "_set_producer_state" in MessageBatch.set_producer_state.__code__.co_names
    assert "_build" in MessageBatch.get_data_buffer.__code__.co_names
    assert parameters(MessageAccumulator.fail_all) == ["self", "exception"]
    assert parameters(MessageAccumulator.add_batch) == ["self", "builder", "tp", "timeout"]
    assert isinstance(Sender.sender_task, property)
    assert parameters(AIOKafkaProducer.send_batch) == ["self", "batch", "topic", "partition"]
    source = inspect.getsource(AIOKafkaProducer.__init__)
    assert "self._sender = Sender(" in source
    assert "self._message_accumulator = MessageAccumulator(" in source
    assert "self.client = AIOKafkaClient(" in source
