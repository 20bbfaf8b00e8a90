"""Owns dead letters: what is written about a row that cannot be sent, and how a page goes on without it.

They go to ``<topic>.dlq`` on the stream's own connection (and in its transaction), and are part of their page: its
checkpoint moves when they are acknowledged too. A later letter of the same record key supersedes the earlier one, and a
tombstone takes it back (`producer dead-letters replay`).

Columns that the stream's transforms mask or drop are left out of a letter, and of its error's text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import EncodeError, NullKeyError, RecordTooLargeError
from producer.model import Dataset, Page, Position, RejectedRow, position_to_json
from producer.salvage import RowError, salvage
from producer.sinks.json_text import json_column
from producer.sinks.kafka import DeadLetterBatches, KafkaWriter, PreparedBatches
from producer.sinks.record_batch import FinishedBatch
from producer.transforms import Transform

#: Of a row that is too large for a letter, no value is longer than so many characters.
_CUT_CHARACTERS = 1000
#: From so many pieces on, a page's good rows are put together anew: small batches compress badly.
_MANY_PIECES = 8

KEY_SCHEMA: Mapping[str, Any] = {
    "type": "record",
    "name": "DeadLetterKey",
    "namespace": "producer",
    "doc": "Which row of which stream.",
    "fields": [
        {"name": "stream", "type": "string", "doc": "The stream's name."},
        {
            "name": "row_key",
            "type": "string",
            "doc": "The row's key as JSON, by column; a UUID where it has none, or it is masked.",
        },
    ],
}
_OPTIONAL = ["null", "string"]
SCHEMA: Mapping[str, Any] = {
    "type": "record",
    "name": "DeadLetter",
    "namespace": "producer",
    "doc": "A row that could not be sent, and why.",
    "fields": [
        {"name": "stream", "type": "string", "doc": "The stream's name."},
        {"name": "row_key", "type": "string", "doc": "As in the record's key."},
        {"name": "source", "type": "string", "doc": "The source's name in the configuration."},
        {"name": "topic", "type": "string", "doc": "The topic that the row was meant for."},
        {
            "name": "key",
            "type": _OPTIONAL,
            "default": None,
            "doc": "The row's key columns as a JSON object; null where it has none, or where the key is masked.",
        },
        {
            "name": "position_after",
            "type": _OPTIONAL,
            "default": None,
            "doc": "The source position after which the row's page was read, as JSON; null is the beginning.",
        },
        {
            "name": "position_upto",
            "type": _OPTIONAL,
            "default": None,
            "doc": "The source position at which the row's page ended, as JSON; null where the key is masked.",
        },
        {"name": "reason", "type": "string", "doc": "The error's class, such as EncodeError or RecordTooLargeError."},
        {"name": "message", "type": "string", "doc": "What is wrong, for a person."},
        {
            "name": "field",
            "type": _OPTIONAL,
            "default": None,
            "doc": "The field or column whose value is wrong, where it is one.",
        },
        {
            "name": "size",
            "type": ["null", "long"],
            "default": None,
            "doc": "The bytes of the record, where they are too many.",
        },
        {
            "name": "row",
            "type": "string",
            "doc": "The row as it was read, as a JSON object; without the columns that are masked or dropped.",
        },
        {
            "name": "complete",
            "type": "boolean",
            "doc": "False where values of the row were cut because the letter would have been too large itself.",
        },
        {
            "name": "rejected_at",
            "type": {"type": "long", "logicalType": "timestamp-micros"},
            "doc": "When the row was found to be bad.",
        },
    ],
}
ARROW_SCHEMA = pa.schema(
    [
        pa.field("stream", pa.string(), nullable=False),
        pa.field("row_key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("position_after", pa.string()),
        pa.field("position_upto", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("field", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("row", pa.string(), nullable=False),
        pa.field("complete", pa.bool_(), nullable=False),
        pa.field("rejected_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


def topic_of(stream: StreamConfig) -> str:
    """Where the stream's dead letters go."""
    return f"{stream.topic}.dlq"


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Sends a stream's bad rows to the dead letters: `around` is for `KafkaSink.writer`.

    `dataset` is the source's; `writer` is that of the letters, which only prepares them here.
    """

    stream: StreamConfig
    dataset: Dataset
    transform: Transform | None
    writer: KafkaWriter
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000

    def around(self, page: Page, prepare: Callable[[Page], PreparedBatches]) -> PreparedBatches:
        """The page's good rows as `prepare` has them, and a letter for each of the others."""

        def attempt(batch: pa.RecordBatch, tombstones: pa.RecordBatch | None = None) -> PreparedBatches:
            piece = dataclasses.replace(page, batch=batch, tombstones=tombstones, rejected=())
            return prepare(piece if self.transform is None else self.transform.page(piece))

        batch = page.batch
        pieces, bad = salvage(batch.num_rows, lambda start, stop: attempt(batch.slice(start, stop - start)))
        if len(pieces) > _MANY_PIECES:
            with contextlib.suppress(EncodeError, RecordTooLargeError):  # a row may be too large in company
                pieces = [attempt(batch.take(_others(batch.num_rows, [row for row, _ in bad])))]
        if page.tombstones is not None:
            pieces.append(attempt(batch.slice(0, 0), page.tombstones))
        whole = pieces[0] if len(pieces) == 1 else _joined(pieces)
        letters = [self._of_rejected(page, rejected) for rejected in page.rejected]
        letters += [self._of_row(page, row, error) for row, error in bad]
        if not letters:
            return whole
        # Its key may be masked: then the page's position is not for headers either.
        position = None if self._key_is_concealed else page.position
        sent = self.writer.prepare(Page(pa.RecordBatch.from_pylist(letters, schema=ARROW_SCHEMA), position))
        reasons = tuple(str(letter["reason"]) for letter in letters)
        return PreparedBatches(
            page.rows,
            whole.bytes + sent.bytes,
            whole.batches,
            DeadLetterBatches(topic_of(self.stream), reasons, sent.batches),
        )

    def _of_row(self, page: Page, row: int, error: RowError) -> dict[str, Any]:
        batch = page.batch.slice(row, 1)
        return self._letter(page, {name: _json_text(batch, name) for name in batch.schema.names}, error, error.message)

    def _of_rejected(self, page: Page, rejected: RejectedRow) -> dict[str, Any]:
        error, message = rejected.error, rejected.error.message
        if isinstance(error, NullKeyError):
            letter = self._letter(page, _rejected_values(rejected), error, message)
            return letter | self._names_of_null_key(rejected, error)
        quotes = error.field in self._concealed if error.field else bool(self._concealed)
        if self._key_is_concealed or quotes:  # the source's words may quote key and value
            message = f"column {error.field!r} holds a value that is not of its type"
        return self._letter(page, _rejected_values(rejected), error, message)

    def _names_of_null_key(self, rejected: RejectedRow, error: NullKeyError) -> dict[str, Any]:
        """What tells a letter's row where its key cannot: the same at each search for such rows."""
        columns, others = rejected.columns, rejected.others
        lacking = any(name not in others and not columns.column(name)[0].is_valid for name in self.dataset.key)
        return {"key": None, "row_key": error.key} if lacking and not self._key_is_concealed else {}

    def _letter(self, page: Page, values: Mapping[str, str], error: RowError, message: str) -> dict[str, Any]:
        """The letter's columns; `values` are JSON texts by column."""
        key = None if self._key_is_concealed else key_text(self.dataset, values)
        row, complete = self._row({name: text for name, text in values.items() if name not in self._concealed})
        return {
            "stream": self.stream.name,
            "row_key": key or str(uuid.uuid4()),
            "source": self.stream.source,
            "topic": self.stream.topic,
            "key": key,
            "position_after": None if self._key_is_concealed else _position_text(page.after),
            "position_upto": None if self._key_is_concealed else _position_text(page.position),
            "reason": type(error).__name__,
            "message": message,
            "field": error.field or None if isinstance(error, EncodeError) else None,
            "size": error.size or None if isinstance(error, RecordTooLargeError) else None,
            "row": row,
            "complete": complete,
            "rejected_at": self.now_us(),
        }

    def _row(self, values: Mapping[str, str]) -> tuple[str, bool]:
        """The row as JSON, and whether it is whole; long values are cut where the letter would be too large."""
        limit_bytes = self.writer.max_batch_bytes // 2
        text = _object(values)
        if len(text.encode()) <= limit_bytes:
            return text, True
        cut = {name: value if len(value) <= _CUT_CHARACTERS else _cut(value) for name, value in values.items()}
        text = _object(cut)
        if len(text.encode()) > limit_bytes:
            text = _object({name: value for name, value in cut.items() if name in self.dataset.key})
        return text, False

    @property
    def _concealed(self) -> frozenset[str]:
        return frozenset() if self.transform is None else self.transform.concealed

    @property
    def _key_is_concealed(self) -> bool:
        return not self._concealed.isdisjoint((*self.dataset.key, *self.dataset.order))


def key_text(dataset: Dataset, values: Mapping[str, str]) -> str | None:
    """A row's key as JSON, of JSON texts by column; None for a table without a key."""
    if not dataset.key or not values.keys() >= set(dataset.key):
        return None
    return _object({name: values[name] for name in dataset.key})


def row_keys(dataset: Dataset, batch: pa.RecordBatch) -> list[str | None]:
    """The key of each row as it stands in a letter."""
    columns = [
        [_json_text(batch.slice(row, 1), name) for row in range(batch.num_rows)]
        if (texts := _json_texts(batch, name)) is None
        else texts
        for name in dataset.key
    ]
    return [key_text(dataset, dict(zip(dataset.key, row, strict=True))) for row in zip(*columns, strict=True)]


def rejected_key(dataset: Dataset, rejected: RejectedRow) -> str | None:
    """The same for a row that the source rejected."""
    return key_text(dataset, _rejected_values(rejected))


def no_letters() -> pa.RecordBatch:
    """For a page that only takes letters back."""
    return pa.RecordBatch.from_pylist([], schema=ARROW_SCHEMA)


def taken_back(stream: str, keys: Sequence[str]) -> pa.RecordBatch:
    """The tombstones of letters, by their `row_key`."""
    schema = pa.schema([ARROW_SCHEMA.field("stream"), ARROW_SCHEMA.field("row_key")])
    return pa.RecordBatch.from_pylist([{"stream": stream, "row_key": key} for key in keys], schema=schema)


def _joined(pieces: Sequence[PreparedBatches]) -> PreparedBatches:
    """The pieces of a page one after the other, in each partition."""
    batches: defaultdict[int, list[FinishedBatch]] = defaultdict(list)
    for piece in pieces:
        for partition, found in piece.batches.items():
            batches[partition].extend(found)
    return PreparedBatches(sum(p.rows for p in pieces), sum(p.bytes for p in pieces), batches)


def _rejected_values(rejected: RejectedRow) -> dict[str, str]:
    columns = rejected.columns
    readable = {name: _json_text(columns, name) for name in columns.schema.names}
    return readable | {name: _dumps(text) for name, text in rejected.others.items()}


def _others(rows: int, without: Sequence[int]) -> pa.Array:
    mask = np.ones(rows, dtype=bool)
    mask[list(without)] = False
    return pa.array(np.flatnonzero(mask))


def _position_text(position: Position | None) -> str | None:
    return None if position is None else json.dumps(position_to_json(position), separators=(",", ":"))


def _object(values: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{_dumps(name)}:{text}" for name, text in values.items()) + "}"


def _cut(text: str) -> str:
    return _dumps(f"{text[:_CUT_CHARACTERS]}... ({len(text)} characters)")


def _json_text(batch: pa.RecordBatch, name: str) -> str:
    """The value of a batch of one row; one that has no proper form as its bytes or number are."""
    texts = _json_texts(batch, name)
    if texts is not None:
        return texts[0]
    column = batch.column(name)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raw = column.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary())[0].as_py()
        return _dumps(raw.decode(errors="replace"))
    if pa.types.is_temporal(kind):
        return str(column.view(pa.int32() if kind.bit_width == 32 else pa.int64())[0].as_py())
    return _dumps(f"a {kind} without a form in JSON")


def _json_texts(batch: pa.RecordBatch, name: str) -> list[str] | None:
    """A column's values as JSON; None where one has no such form."""
    try:
        texts: list[str] = json_column(batch.column(name), batch.schema.field(name)).to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    return texts


def _dumps(value: object) -> str:
    return orjson.dumps(value, default=str).decode()
