"""Which table answers to a name: what tells one that was made anew, emptied or restarted from the one that was read.

A `Generation` is what the database says with each page. A `Record` is what a checkpoint keeps of the last one, with
samples of the rows that were read where the database does not tell a rewritten table from a new one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from producer.model import Json, KeyPosition, Position, position_from_json, position_to_json
from producer.sources.sql.scalars import bool_as_int

#: The name under which a split's detail keeps its record.
TABLE = "table"
#: So many rows are remembered, and so many columns of each.
_SAMPLES, _SAMPLED_COLUMNS = 6, 6
#: So many ranges that must stay empty are remembered.
_WATCHES = 4


@dataclass(frozen=True, slots=True)
class Generation:
    """`parts` are the storages of the rows (PostgreSQL: of each partition by its oid), another value after a rewrite.

    `last` is the newest number that the database has handed out for a column, `greatest` the greatest number in a
    column whose numbers are used again. `horizon`: rows of transactions below this number had been committed by then.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    last: Mapping[str, int] = field(default_factory=dict)
    greatest: Mapping[str, int] = field(default_factory=dict)
    horizon: int = 0

    def knowing(self, before: Generation) -> Generation:
        """With the numbers of `before` that are not known now: a sequence that was set back has none until its next."""
        return replace(self, last={**before.last, **self.last})


@dataclass(frozen=True, slots=True)
class Sample:
    """A row that was read: its key, and checksums of some columns."""

    key: KeyPosition
    columns: Mapping[str, int]

    def matches(self, columns: Mapping[str, int]) -> bool:
        """Whether a row of the same key is this one: an update changes some columns, another row most of them."""
        both = self.columns.keys() & columns.keys()
        return not both or 2 * sum(self.columns[name] == columns[name] for name in both) > len(both)


@dataclass(frozen=True, slots=True)
class Watch:
    """A range of keys without rows since the table was emptied; one that appears there would never be sent."""

    part: str
    lower: Position | None
    upper: Position | None


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of the table that was read. `rows` counts those of the split; None: it is not known."""

    generation: Generation
    rows: int | None = 0
    samples: tuple[Sample, ...] = ()
    watches: tuple[Watch, ...] = ()

    def read(self, now: Generation, rows: int, sample: Sample | None) -> Record:
        """After a page with rows."""
        samples = self.samples
        if sample is not None:
            samples = (*samples, sample)
            if len(samples) > _SAMPLES:  # thinned out: the first and the last stay
                samples = (*samples[:-1:2], samples[-1])
        return Record(now, None if self.rows is None else self.rows + rows, samples, self.watches)

    def watching(self, watch: Watch) -> Record:
        return replace(self, watches=(*(w for w in self.watches if w.part != watch.part), watch)[-_WATCHES:])


def generation_of(text: str) -> Generation | None:
    """What a dialect said, as JSON; None where it says nothing (of a view)."""
    if not text:
        return None
    found = json.loads(text)
    return Generation(
        {str(part): str(stored) for part, stored in (found.get("parts") or {}).items()},
        _numbers(found.get("last")),
        _numbers(found.get("greatest")),
        int(found.get("horizon") or 0),
    )


def sample_of(batch: pa.RecordBatch, position: Position | None, order: Sequence[str]) -> Sample | None:
    """Of the last row of a page; None where its key is not known. A page of counted rows has it among its columns."""
    if not batch.num_rows:
        return None
    if not isinstance(position, KeyPosition):
        values = [bool_as_int(batch.column(name)[batch.num_rows - 1].as_py()) for name in order]
        if not all(isinstance(value, int | str) for value in values):
            return None
        position = KeyPosition(tuple(values))
    return Sample(position, row_checksums(batch, batch.num_rows - 1, order))


def row_checksums(batch: pa.RecordBatch, row: int, order: Sequence[str]) -> dict[str, int]:
    """Of some columns that are not in the key, by name and type. A column that gets another type is not compared, nor
    is NULL: a column that was dropped and added again has it in every row."""
    fields = [field for field in batch.schema if field.name not in order][:_SAMPLED_COLUMNS]
    values = {f"{field.name} {field.type}": batch.column(field.name)[row].as_py() for field in fields}
    return {name: zlib.crc32(repr(value).encode()) for name, value in values.items() if value is not None}


def record_to_json(record: Record) -> Json:
    """The form in which a checkpoint keeps it."""
    now = record.generation
    return {
        "parts": dict(now.parts),
        "last": dict(now.last),
        "greatest": dict(now.greatest),
        "horizon": now.horizon,
        "rows": record.rows,
        "samples": [[position_to_json(sample.key), dict(sample.columns)] for sample in record.samples],
        "watches": [[w.part, position_to_json(w.lower), position_to_json(w.upper)] for w in record.watches],
    }


def record_from_json(value: Json) -> Record:
    """The inverse of `record_to_json`; ValueError, KeyError or TypeError for anything else."""
    samples = []
    for key, columns in value["samples"]:
        position = position_from_json(key)
        if isinstance(position, KeyPosition):
            samples.append(Sample(position, _numbers(columns)))
    watches = [Watch(part, position_from_json(low), position_from_json(high)) for part, low, high in value["watches"]]
    parts = {str(part): str(stored) for part, stored in value["parts"].items()}
    numbers = Generation(parts, _numbers(value["last"]), _numbers(value["greatest"]), int(value["horizon"]))
    rows = None if value["rows"] is None else int(value["rows"])
    return Record(numbers, rows, tuple(samples), tuple(watches))


def _numbers(value: Json) -> dict[str, int]:
    return {str(name): int(number) for name, number in (value or {}).items() if number is not None}
