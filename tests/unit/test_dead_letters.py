"""Owns the claims about a dead letter's form: its schema's golden copy, and what it says of an odd row."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from producer.config import StreamConfig
from producer.encoding.arrow_avro import AvroEncoder
from producer.encoding.schema import derive_value_schema
from producer.errors import EncodeError, RecordTooLargeError
from producer.model import Dataset, KeyPosition, Page, RejectedRow
from producer.sinks.dead_letters import ARROW_SCHEMA, KEY_SCHEMA, SCHEMA, DeadLetters, row_keys
from producer.sinks.kafka import KafkaWriter, PreparedBatches
from producer.transforms import Transform, compile_transforms

FILE = Path(__file__).resolve().parents[2] / "schemas" / "dead_letter.avsc"
COLUMNS = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string())])
DATASET = Dataset("t", COLUMNS, ("id",), ("id",), {})


@dataclass
class Letters:
    """In the place of the writer of the dead letters: keeps them."""

    max_batch_bytes: int = 1_000_000
    found: list[dict[str, Any]] = field(default_factory=list)

    def prepare(self, page: Page) -> PreparedBatches:
        self.found += page.batch.to_pylist()
        return PreparedBatches(page.rows, page.batch.nbytes, {})


def put_aside(page: Page, error: Exception | None = None, **more: Any) -> dict[str, Any]:
    """The letter for the page's only row, which fails with `error`."""
    writer = Letters(more.pop("max_batch_bytes", 1_000_000))
    stream = StreamConfig.model_validate({"source": "shop", "table": "t", "transforms": more.get("transforms", [])})
    transform: Transform | None = compile_transforms(stream.transforms, DATASET, stream="t")

    def prepare(piece: Page) -> PreparedBatches:
        if error is not None and piece.batch.num_rows:
            raise error
        return PreparedBatches(piece.rows, 0, {})

    letters = DeadLetters(stream, DATASET, transform, cast(KafkaWriter, writer), now_us=lambda: 0)
    prepared = letters.around(page, prepare)
    assert prepared.rows == page.rows == 1
    assert prepared.dead_letters is not None
    assert prepared.dead_letters.topic == "shop.t.dlq"
    (letter,) = writer.found
    assert prepared.dead_letters.reasons == (letter["reason"],)
    return letter


def row(text: str | bytes) -> Page:
    raw = text.encode() if isinstance(text, str) else text
    texts = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0" + len(raw).to_bytes(4, "little")), pa.py_buffer(raw)]
    )
    batch = pa.RecordBatch.from_arrays([pa.array([5], pa.int64()), texts], schema=COLUMNS)
    return Page(batch, KeyPosition((5,)), after=KeyPosition((4,)))


def test_the_schema_is_the_one_in_the_file() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == SCHEMA


def test_every_field_says_what_it_is_and_has_its_column() -> None:
    for schema in (SCHEMA, KEY_SCHEMA):
        assert all(field["doc"].endswith(".") for field in schema["fields"])
        AvroEncoder(schema, ARROW_SCHEMA)
    assert [field["name"] for field in SCHEMA["fields"]] == ARROW_SCHEMA.names
    nullable = [field["name"] for field in SCHEMA["fields"] if "null" in field["type"]]
    assert nullable == [field.name for field in ARROW_SCHEMA if field.nullable]
    assert derive_value_schema(Dataset("t", ARROW_SCHEMA, (), (), {}))["fields"][-1]["type"]["type"] == "long"


def test_a_letter_says_which_row_where_and_why() -> None:
    letter = put_aside(row("x"), EncodeError("does not fit", field="text", row=0))
    assert (letter["key"], letter["row_key"]) == ('{"id":5}', '{"id":5}')
    assert (letter["position_after"], letter["position_upto"]) == ('{"key":[4]}', '{"key":[5]}')
    assert (letter["reason"], letter["message"], letter["field"]) == ("EncodeError", "does not fit", "text")
    assert (letter["row"], letter["complete"], letter["size"]) == ('{"id":5,"text":"x"}', True, None)


def test_a_text_that_is_not_utf8_is_shown_as_far_as_it_is() -> None:
    letter = put_aside(row(b"a\xffb"), EncodeError("is not valid UTF-8", row=0))
    assert json.loads(letter["row"]) == {"id": 5, "text": "a\N{REPLACEMENT CHARACTER}b"}


@pytest.mark.parametrize("limit", [4000, 100])
def test_a_row_too_large_for_a_letter_is_cut_and_says_so(limit: int) -> None:
    letter = put_aside(row("x" * 10_000), RecordTooLargeError("too large", size=10_010, row=0), max_batch_bytes=limit)
    assert (letter["size"], letter["complete"]) == (10_010, False)
    assert len(letter["row"]) < 2000
    assert json.loads(letter["row"])["id"] == 5


def _rejected(name: str) -> Page:
    columns = {"id": pa.array([5], pa.int64())} if name == "text" else {"text": pa.array(["private"])}
    error = EncodeError("column 'text', row with key 5: holds 'private'", field=name, key="5")
    rejected = RejectedRow(pa.record_batch(columns), {name: "private"}, error)
    empty = pa.RecordBatch.from_pylist([], schema=COLUMNS)
    return Page(empty, KeyPosition((5,)), rejected=(rejected,), after=KeyPosition((4,)))


def test_a_row_that_the_source_rejected_has_the_key_that_it_would_have_had() -> None:
    letter = put_aside(_rejected("text"))
    assert [letter["key"]] == row_keys(DATASET, row("x").batch)
    assert json.loads(letter["row"]) == {"id": 5, "text": "private"}


@pytest.mark.parametrize("how", [{"mask": ["text"], "salt": "pepper and salt"}, {"drop": ["text"]}])
def test_the_sources_words_about_a_concealed_value_are_not_passed_on(how: dict[str, Any]) -> None:
    letter = put_aside(_rejected("text"), transforms=[how])
    assert "private" not in str(letter)
    assert letter["key"] == '{"id":5}'


def test_a_concealed_key_shows_neither_in_key_nor_in_positions_nor_in_words() -> None:
    masked = [{"mask": ["id"], "salt": "pepper and salt"}]
    for letter in (
        put_aside(_rejected("text"), transforms=masked),
        put_aside(row("x"), EncodeError("bad", row=0), transforms=masked),
    ):
        assert "5" not in f"{letter['key']}{letter['position_after']}{letter['position_upto']}{letter['message']}"
        assert "id" not in json.loads(letter["row"])
