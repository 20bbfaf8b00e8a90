"""Owns what is done to columns before they leave: rename, drop, constant, mask, cast, to_utc.

They work on whole Arrow columns. A stream's `transforms` are compiled once against its `Dataset`, which checks all that
can be known before a row is read, and gives the Dataset as it is afterwards: schemas are derived from that one (or
checked against it). They change neither which rows are read nor the paging, so they are no part of the fingerprint: a
checkpoint stays valid when they change. Null stays null in all of them.

A key column can be renamed, hashed by `mask` (equal keys stay equal, so it still says which record is meant), cast
where different keys stay different, and dropped, which takes it out of the value alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import pyarrow as pa
import pyarrow.compute as pc

from producer.config import (
    CastConfig,
    ConstantConfig,
    DropConfig,
    MaskConfig,
    RenameConfig,
    ToUtcConfig,
    TransformConfig,
)
from producer.config.explain import nearest
from producer.config.zone import find_zone
from producer.encoding.shown import shown
from producer.errors import ConfigError, EncodeError, SchemaIncompatibleError
from producer.model import Dataset, Page
from producer.zones import local_to_utc

Step = Callable[[pa.Array], pa.Array]

_UTC = pa.timestamp("us", tz="UTC")
_TYPES: Mapping[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "date": pa.date32(),
    "timestamp": _UTC,
    "local_timestamp": pa.timestamp("us"),
}
_BLOCK_BYTES = 64  # of SHA-256
_DECIMAL = re.compile(r"decimal\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")


@dataclass(frozen=True, slots=True)
class Column:
    """One column as it leaves: from the column `source` by `steps`, or the same `constant` in each row."""

    field: pa.Field
    source: str = ""
    steps: tuple[Step, ...] = ()
    constant: pa.Scalar[Any] | None = None

    def values(self, batch: pa.RecordBatch) -> pa.Array:
        """The column for all rows of `batch`; EncodeError names the first value that a cast cannot take."""
        if self.constant is not None:
            return pa.repeat(self.constant, batch.num_rows)
        values = batch.column(self.source)
        for step in self.steps:
            try:
                values = step(values)
            except (pa.ArrowInvalid, _SkippedTime) as error:
                row = _first_refused(step, values)
                problem = f"a value of type {values.type} has no form as {self.field.type}"
                if isinstance(error, _SkippedTime):
                    problem = str(error)
                raise EncodeError(f"column {self.source!r}: {problem}", field=self.source, row=row) from None
        return values


@dataclass(frozen=True, slots=True)
class Transform:
    """Compiled transforms: `dataset` is what leaves, for writers (its `order` is empty: the source does the paging).

    `concealed` names the source's columns whose values may not be shown: masked, or dropped.
    """

    source: Dataset
    dataset: Dataset
    columns: tuple[Column, ...]
    concealed: frozenset[str]

    def page(self, page: Page) -> Page:
        """The page as it leaves. EncodeError with the row for a value that cannot be cast, SchemaIncompatibleError
        for a page of other columns than the Dataset's. Without the position where that would show a masked key."""
        names = self.source.schema.names
        if (page.batch.schema.names, page.batch.schema.types) != (names, self.source.schema.types):
            raise SchemaIncompatibleError(f"{self.source.name}: the page's columns differ from the table's")
        keys = page.tombstones
        return dataclasses.replace(
            page,
            batch=self._batch(page.batch, self.columns),
            position=None if self.concealed.intersection(self.source.order) else page.position,
            tombstones=None if keys is None else self._batch(keys, self._key_columns),
        )

    @property
    def _key_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.field.name in self.dataset.key)

    def _batch(self, batch: pa.RecordBatch, columns: Sequence[Column]) -> pa.RecordBatch:
        arrays = []
        for column in columns:
            try:
                arrays.append(column.values(batch))
            except EncodeError as error:
                key = ", ".join(f"{name}={shown(batch.column(name)[error.row])}" for name in self._shown_key(batch))
                message = f"the record with key {key}: {error.message}" if key else error.message
                raise EncodeError(message, key=key, field=error.field, row=error.row) from None
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([column.field for column in columns]))

    def _shown_key(self, batch: pa.RecordBatch) -> list[str]:
        return [name for name in self.source.key if name not in self.concealed and name in batch.schema.names]


def compile_transforms(transforms: Sequence[TransformConfig], dataset: Dataset, *, stream: str) -> Transform | None:
    """The stream's transforms for `dataset`, None where there are none; ConfigError for one that cannot work."""
    if not transforms:
        return None
    draft = _Draft(dataset, stream)
    for transform in transforms:
        draft.apply(transform)
    return draft.compiled()


class _Draft:
    """The columns while one transform after the other is put in."""

    def __init__(self, dataset: Dataset, stream: str) -> None:
        self._dataset = dataset
        self._stream = stream
        self._key = list(dataset.key)
        # Columns that are there for the paging alone do not leave.
        self._columns = {
            field.name: Column(field, field.name)
            for field in dataset.schema
            if field.name not in dataset.hidden or field.name in dataset.key
        }
        self._hidden = set(dataset.hidden & set(dataset.key))
        self._concealed: set[str] = set()
        self._same_key = True

    def apply(self, transform: TransformConfig) -> None:
        match transform:
            case RenameConfig():
                self._rename(transform.rename)
            case DropConfig():
                for name in transform.drop:
                    self._drop(name)
            case ConstantConfig():
                for name, value in transform.constant.items():
                    if name in self._columns:
                        raise self._error(f"constant: there is a column {name!r} already", "drop or rename it first")
                    constant = pa.scalar(value)
                    self._columns[name] = Column(pa.field(name, constant.type, nullable=False), constant=constant)
            case MaskConfig():
                for name in transform.mask:
                    self._mask(name, transform)
            case CastConfig():
                for name, kind in transform.cast.items():
                    self._cast(name, kind)
            case ToUtcConfig():
                for name in transform.to_utc:
                    self._to_utc(name, transform.zone)
            case _:
                assert_never(transform)

    def compiled(self) -> Transform:
        dataset = self._dataset
        columns = tuple(self._columns.values())
        if all(column.field.name in self._hidden for column in columns):
            raise self._error("drop: no columns are left")
        after = dataclasses.replace(
            dataset,
            schema=pa.schema([_told(column) for column in columns], metadata=dataset.schema.metadata),
            key=tuple(self._key),
            order=(),
            hidden=frozenset(self._hidden),
            value_schema=None,  # a fixed one is of the columns as they were
            key_schema=dataset.key_schema if self._same_key else None,
        )
        return Transform(dataset, after, columns, frozenset(self._concealed))

    def _rename(self, names: Mapping[str, str]) -> None:
        for old, new in names.items():
            self._find("rename", old)
            if not new:
                raise self._error(f"rename: the new name of {old!r} is empty")
        after = [names.get(name, name) for name in self._columns]
        twice = next((name for name in after if after.count(name) > 1), None)
        if twice is not None:
            raise self._error(f"rename: two columns would be named {twice!r}")
        self._same_key = self._same_key and not set(self._key) & set(names)
        self._columns = {
            new: dataclasses.replace(column, field=column.field.with_name(new))
            for new, column in zip(after, self._columns.values(), strict=True)
        }
        self._key = [names.get(name, name) for name in self._key]
        self._hidden = {names.get(name, name) for name in self._hidden}

    def _drop(self, name: str) -> None:
        column = self._find("drop", name)
        if name in self._key:
            self._hidden.add(name)  # the record's key still has it, so it is no secret
        else:
            del self._columns[name]
            self._concealed.add(column.source)

    def _mask(self, name: str, mask: MaskConfig) -> None:
        column = self._find("mask", name)
        if mask.salt is not None:
            step = _hash(mask.salt.get_secret_value().encode())
        elif name in self._key:
            raise self._error(
                f"mask: {name!r} is part of the key, and all keys would be the same", "give salt and not with"
            )
        else:
            step = _replace(mask.text or "")
        self._concealed.add(column.source)
        self._put("mask", name, column, step, pa.string())

    def _cast(self, name: str, kind: str) -> None:
        column = self._find("cast", name)
        wanted, present = self._type(name, kind), column.field.type
        if pa.types.is_timestamp(present) and present.tz is None and wanted == _UTC:
            raise self._error(f"cast: {name!r} is a timestamp without a zone", "to_utc says in which zone it is")
        distinct = wanted in (present, pa.string()) or (
            pa.types.is_integer(present) and (pa.types.is_integer(wanted) or pa.types.is_decimal(wanted))
        )
        if name in self._key and not distinct:
            raise self._error(
                f"cast: {name!r} is part of the key, and as {kind} different keys might become the same",
                "a key can be cast to string, and a whole number to another one",
            )
        self._put("cast", name, column, _to(wanted), wanted)

    def _type(self, name: str, kind: str) -> pa.DataType:
        if found := _DECIMAL.fullmatch(kind):
            precision, scale = int(found[1]), int(found[2] or 0)
            if 1 <= precision <= 76 and scale <= precision:
                return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
            raise self._error(f"cast: {name!r} to {kind}: precision is 1 to 76, and scale at most precision")
        if kind not in _TYPES:
            valid = ", ".join((*_TYPES, "decimal(precision,scale)"))
            raise self._error(f"cast: {kind!r} is not a type{nearest(kind, _TYPES)}; valid: {valid}")
        return _TYPES[kind]

    def _to_utc(self, name: str, zone: str) -> None:
        column = self._find("to_utc", name)
        present = column.field.type
        if not pa.types.is_timestamp(present):
            raise self._error(f"to_utc: {name!r} is of type {present}, not a timestamp", "cast it first")
        if name in self._key and present.tz is None and zone != "UTC":
            raise self._error(f"to_utc: {name!r} is part of the key, and the hour that {zone} has twice would be one")
        self._put("to_utc", name, column, _at_utc(zone), _UTC)

    def _put(self, what: str, name: str, column: Column, step: Step, kind: pa.DataType) -> None:
        """Adds a step, which is tried on a column of one null: what Arrow cannot do is known from the types alone."""
        try:
            step(pa.nulls(1, column.field.type))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, NotImplementedError) as error:
            detail = str(error).splitlines()[0]
            raise self._error(f"{what}: {name!r} of type {column.field.type} cannot become {kind}: {detail}") from None
        told = {key: value for key, value in (column.field.metadata or {}).items() if key == b"comment"}
        field = column.field.with_type(kind).with_metadata(told)
        self._columns[name] = dataclasses.replace(column, field=field, steps=(*column.steps, step))
        self._same_key = self._same_key and name not in self._key

    def _find(self, what: str, name: str) -> Column:
        if name not in self._columns:
            offer = nearest(name, self._columns) or f"; there are: {', '.join(self._columns)}"
            raise self._error(f"{what}: there is no column {name!r}{offer}")
        return self._columns[name]

    def _error(self, problem: str, hint: str = "") -> ConfigError:
        return ConfigError(f"stream {self._stream!r}: transforms: {problem}", hint=hint)


def _told(column: Column) -> pa.Field:
    """The field, which says what its column is called in the source where that is another name."""
    if not column.source or column.source == column.field.name:
        return column.field
    return column.field.with_metadata({**(column.field.metadata or {}), b"source_column": column.source.encode()})


def _to(wanted: pa.DataType) -> Step:
    def step(values: pa.Array) -> pa.Array:
        if pa.types.is_decimal(wanted) and pa.types.is_integer(values.type):
            values = values.cast(pa.decimal256(76, 0))  # Arrow asks for room for any integer, not for those there are
        return values.cast(wanted)

    return step


def _hash(salt: bytes) -> Step:
    """HMAC-SHA-256 in hex of a value's text (of bytes: of the bytes), once for each different value of a page.

    As RFC 2104 defines it, from two hashes: the library's own call costs twice as much for values as short as these.
    """
    sha256 = hashlib.sha256
    key = (sha256(salt).digest() if len(salt) > _BLOCK_BYTES else salt).ljust(_BLOCK_BYTES, b"\0")
    inner, outer = bytes(byte ^ 0x36 for byte in key), bytes(byte ^ 0x5C for byte in key)

    def step(values: pa.Array) -> pa.Array:
        encoded = values if pa.types.is_dictionary(values.type) else pc.dictionary_encode(values)
        kinds = encoded.dictionary
        texts = kinds if pa.types.is_binary(kinds.type) else kinds.cast(pa.string()).cast(pa.binary())
        hashed = [
            None if text is None else sha256(outer + sha256(inner + text).digest()).hexdigest()
            for text in texts.to_pylist()
        ]
        return pa.array(hashed, pa.string()).take(encoded.indices)

    return step


def _replace(text: str) -> Step:
    return lambda values: pc.if_else(values.is_valid(), pa.scalar(text), pa.scalar(None, pa.string()))


class _SkippedTime(Exception):
    """A local time that the zone's clock never showed, because it was put forward."""


def _at_utc(zone: str) -> Step:
    """Of a time that the zone's clock showed twice the first is taken; `_SkippedTime` for one that it never showed."""
    rules = find_zone(zone)

    def step(values: pa.Array) -> pa.Array:
        if values.type.tz is not None:
            return values.cast(_UTC)
        local = values.cast(pa.timestamp("us")).view(pa.int64())
        moments, skipped = local_to_utc(rules, local.fill_null(0).to_numpy())
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        if (skipped & valid).any():
            raise _SkippedTime(f"the clocks of {zone} skip a local time that it has")
        return pa.array(moments, mask=~valid).view(_UTC)

    return step


def _first_refused(step: Step, values: pa.Array) -> int:
    """The row of the first value that `step` does not take, by halves: as much work as the whole column twice."""
    start, stop = 0, len(values)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            step(values.slice(start, middle - start))
            start = middle
        except (pa.ArrowInvalid, _SkippedTime):
            stop = middle
    return start
