"""Owns the values that pass between the parts: Position, Split, Checkpoint, StreamState, Dataset, Page.

Nothing here does I/O. Positions are exclusive: a position is the last row that was read, and reading goes on after
it. ``None`` in the place of a position is the beginning of the split.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from producer.errors import EncodeError
from producer.identity import Identity, identity_from_json, identity_to_json

Traversal = Literal["OFFSET", "ID_RANGE"]
Mode = Literal["snapshot", "tail", "snapshot_then_tail", "timestamp"]

#: A value that a key column can have. ``datetime`` may be naive (a timestamp without zone) or aware.
KeyScalar = int | str | bytes | float | decimal.Decimal | uuid.UUID | dt.datetime | dt.date | dt.time
Json = Any

#: Field metadata of a ``json`` column whose values a text file writes as the source wrote them.
AS_WRITTEN = "json.as_written"


@dataclass(frozen=True, slots=True)
class OffsetPosition:
    """How many rows of the ordered result have been read."""

    rows: int


@dataclass(frozen=True, slots=True)
class KeyPosition:
    """The key of the last row that was read, one value for each column of the traversal's order."""

    values: tuple[KeyScalar, ...]


Position = OffsetPosition | KeyPosition


@dataclass(frozen=True, slots=True)
class Between:
    """A condition on one column: ``first`` <= column <= ``last``; ``None`` means open on that side."""

    column: str
    first: KeyScalar | None
    last: KeyScalar | None


#: How the id of a split begins that reads a range of rows once more, beside those that the plan made.
REPLAY = "replay-"


@dataclass(frozen=True, slots=True)
class Split:
    """A piece of a stream's key space: ``lower`` exclusive, ``upper`` inclusive; ``None`` means open on that side.

    An OFFSET stream has one split with both sides open (or ``upper=OffsetPosition(n)`` for a counted snapshot).
    Of a replay only the rows ``between`` are read. ``detail`` is what the traversal remembers from the plan on: it is
    that of the split's first checkpoint, and kept there.
    """

    id: str
    lower: Position | None = None
    upper: Position | None = None
    between: Between | None = None
    detail: Mapping[str, Json] | None = field(default=None, compare=False)

    @property
    def is_replay(self) -> bool:
        return self.id.rpartition(".")[2].startswith(REPLAY)  # also where it is named as one of the whole stream's

    @property
    def is_open(self) -> bool:
        """Whether rows may come that belong to it; one that is followed has no end."""
        return self.upper is None and not self.is_replay

    @property
    def is_bounded(self) -> bool:
        """Whether it is a planned piece of a snapshot."""
        return self.upper is not None and not self.is_replay


def unit_name(stream: str, partition: int) -> str:
    """The name under which a store keeps the part of a stream that belongs to a partition of the state topic."""
    return f"{stream}/{partition}"


def split_name(unit: str, split_id: str) -> str:
    """What a split is called in its whole stream: its id, after the number of the unit (of shared work) that has it."""
    return f"{unit}.{split_id}" if unit else split_id


def unit_partition(name: str) -> int | None:
    """The partition in a unit's name; None for a whole stream (whose name has no slash)."""
    _, slash, partition = name.rpartition("/")
    return int(partition) if slash and partition.isdigit() else None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The acknowledged position of one split. ``rows`` counts what was acknowledged since the split began.

    ``done`` is set when the split has nothing more to read. ``detail`` is the traversal's own memory beside the
    position (JSON values only), committed with it; the engine passes it through untouched.
    """

    split: Split
    position: Position | None = None
    rows: int = 0
    done: bool = False
    detail: Mapping[str, Json] | None = None

    def __post_init__(self) -> None:
        if self.detail is None and self.split.detail is not None:
            object.__setattr__(self, "detail", self.split.detail)


def without_table(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as one of any table of the name: what its detail says of the table is left out."""
    detail = {name: value for name, value in (checkpoint.detail or {}).items() if name != "table"}
    return dataclasses.replace(checkpoint, split=dataclasses.replace(checkpoint.split, detail=None), detail=detail)


@dataclass(frozen=True, slots=True)
class StreamState:
    """All that a checkpoint store keeps of one stream.

    ``fingerprint`` is that of the query and traversal that made the positions; ``epoch`` rises with every runner
    that claims the stream, and a runner with an older epoch may not commit any more. ``paused``: an operator has
    stopped it, and it stays so over restarts. ``owner`` is the worker that claimed last, where the store knows.
    ``identity`` says what the checkpoint belongs to; None in one of an older version.
    """

    stream: str
    fingerprint: str
    epoch: int
    checkpoints: tuple[Checkpoint, ...]
    updated_at: str = ""  # ISO 8601, UTC
    paused: bool = False
    owner: str | None = field(default=None, compare=False)
    identity: Identity | None = None

    def with_changes(self, changed: Sequence[Checkpoint], updated_at: str) -> StreamState:
        """This state with the given splits' checkpoints put in (new splits are appended)."""
        by_id = {c.split.id: c for c in self.checkpoints}
        by_id.update({c.split.id: c for c in changed})
        return dataclasses.replace(self, checkpoints=tuple(by_id.values()), updated_at=updated_at)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A table, chat or API table as its source found it, ready to be paged.

    ``schema`` is that of every page. Field metadata (all optional, UTF-8): ``comment``; ``sql_type`` (the source's
    own name of the type); ``avro.enum`` (JSON list of an enum's symbols; the Arrow type is then string or
    dictionary); ``avro.logical`` (``uuid``, ``json``: the Arrow type is then string); `AS_WRITTEN`. ``nullable`` is
    honoured.
    ``key`` names the columns of the record key, ``order`` those of the traversal; both are in ``schema``, and
    ``hidden`` names those of them which are fetched for paging only and are not part of the value.
    ``identity`` says in a canonical way what is read (table, columns, where, params, order); it makes the
    fingerprint and may not hold a secret.
    ``value_schema``/``key_schema`` are Avro schemas where the source has fixed ones. ``origin`` is the source's own
    part of what a checkpoint belongs to. ``remarks`` are what the source has assumed, for a person.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    order: tuple[str, ...]
    identity: Mapping[str, Json]
    hidden: frozenset[str] = frozenset()
    rows_estimate: int | None = None
    row_bytes_estimate: int | None = None
    namespace: str = ""
    comment: str = ""
    value_schema: Mapping[str, Json] | None = None
    key_schema: Mapping[str, Json] | None = None
    origin: Identity = field(default_factory=Identity)
    remarks: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        return f"{self.namespace}.{self.name}" if self.namespace else self.name

    def fingerprint(self, traversal: Traversal) -> str:
        """SHA-256 (first 16 hex digits) of what is read and how it is traversed."""
        return _digest({"traversal": traversal, **self.identity})

    def query_fingerprint(self, traversal: Traversal) -> str:
        """As `fingerprint`, without the place: equal for the same query of a table of another name."""
        return _digest(
            {"traversal": traversal, **{k: v for k, v in self.identity.items() if k not in ("table", "host")}}
        )


def _digest(value: Mapping[str, Json]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that the source cannot give as its columns' types.

    ``columns`` has those that it can (one row), ``others`` the other ones as text, for a person; ``error`` says why.
    """

    columns: pa.RecordBatch
    others: Mapping[str, str]
    error: EncodeError


@dataclass(frozen=True, slots=True)
class NullKeys:
    """Rows with NULL in a column of the key or order, which paging never reaches and no run sends.

    ``columns`` are those that hold a NULL, each with the number of rows in which it is the first one; ``named`` says of
    a few of the rows which they are, for a person, as ``a=1, b=NULL``; ``hint`` is the way out.
    """

    columns: Mapping[str, int]
    named: tuple[str, ...] = ()
    hint: str = ""

    @property
    def rows(self) -> int:
        return sum(self.columns.values())

    def message(self, stream: str) -> str:
        """What is wrong, in one line."""
        rows = "1 row has" if self.rows == 1 else f"{self.rows:,} rows have"
        columns = f"column{'s' if len(self.columns) > 1 else ''} {', '.join(map(repr, self.columns))}"
        some = f": {'; '.join(self.named)}" + ("; ..." if len(self.named) < self.rows else "") if self.named else ""
        return f"stream {stream!r}: {rows} NULL in {columns} of the key or order, and cannot be sent{some}"


@dataclass(frozen=True, slots=True)
class NullRows:
    """Rows with NULL in a column of the key or order.

    ``digests`` has one for each of them, which is the same at every search as long as the row is the same. ``new`` are
    some of the rows that the search was not told to know, with their digests.
    """

    digests: frozenset[bytes]
    new: tuple[tuple[bytes, RejectedRow], ...] = ()


#: How many keys a range has, and a checksum of them that no order changes and every key does.
KeyDigest = tuple[int, int]


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Keys alone: ``batch`` has the columns of ``Dataset.key``; ``position`` is that of the last one, as of a page.

    ``last``: there is none after it in the range. ``digest`` is that of these very keys, by the source's own checksum;
    None where the source has none.
    """

    batch: pa.RecordBatch
    position: Position | None
    last: bool
    digest: KeyDigest | None


@dataclass(frozen=True, slots=True)
class Page:
    """One fetch: rows as columns, and the position after its last row.

    ``position`` is ``None`` only for an empty page that did not move. ``last`` says that the split has nothing
    after this page as of this fetch. ``tombstones`` names rows to delete by key (same columns as ``Dataset.key``).
    ``source_time`` is when the source had answered (seconds since 1970), for the lag. ``rejected`` are rows that
    were read and are not in ``batch``; sources fill it where the stream sends bad records to the dead letters, and
    fail otherwise. ``after`` is where the fetch began, which the pipeline fills in.
    """

    batch: pa.RecordBatch
    position: Position | None
    last: bool = False
    tombstones: pa.RecordBatch | None = None
    detail: Mapping[str, Json] | None = None
    source_time: float | None = field(default=None, compare=False)
    rejected: tuple[RejectedRow, ...] = ()
    after: Position | None = None

    @property
    def rows(self) -> int:
        """All that were read: those of the batch, and those rejected."""
        return int(self.batch.num_rows) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a scan met a position that it was asked for.

    ``row`` is the number of the last row of the page that is not after position number ``position``; -1: all rows are
    after it. ``exact``: that row has the position's own key. Otherwise the source compared the keys.
    """

    row: int
    position: int
    exact: bool


@dataclass(frozen=True, slots=True)
class ScannedPage:
    """Some rows of a scan, in the order of the traversal.

    ``rejected`` are the rows that are not in ``batch``, each with its number among all rows of the page. ``replayed``
    says of each row of ``batch`` whether it lies in a range that was asked for; None where none was.
    """

    batch: pa.RecordBatch
    rejected: tuple[tuple[int, RejectedRow], ...] = ()
    marks: tuple[Mark, ...] = ()
    replayed: pa.Array | None = None


# --- JSON forms: what the stores write and `producer checkpoint` shows ---------------------------------------------


def scalar_to_json(value: KeyScalar) -> Json:
    """A key value as JSON that keeps its kind: ints, floats and text as they are, the others as a tagged object."""
    match value:
        case bool():
            raise TypeError("a boolean cannot be a position")
        case int() | str() | float():
            return value
        case uuid.UUID():
            return {"uuid": str(value)}
        case decimal.Decimal():
            return {"decimal": str(value)}
        case bytes():
            return {"bytes": base64.b64encode(value).decode()}
        case dt.datetime():
            return {"timestamp": value.isoformat()}
        case dt.date():
            return {"date": value.isoformat()}
        case dt.time():
            return {"time": value.isoformat()}


def scalar_from_json(value: Json) -> KeyScalar:
    """The inverse of `scalar_to_json`; ValueError for anything that it would not have written."""
    if isinstance(value, int | str | float) and not isinstance(value, bool):
        return value
    if isinstance(value, dict) and len(value) == 1:
        ((kind, text),) = value.items()
        match kind:
            case "uuid":
                return uuid.UUID(text)
            case "decimal":
                return decimal.Decimal(text)
            case "bytes":
                return base64.b64decode(text, validate=True)
            case "timestamp":
                return dt.datetime.fromisoformat(text)
            case "date":
                return dt.date.fromisoformat(text)
            case "time":
                return dt.time.fromisoformat(text)
    raise ValueError(f"not a key value: {value!r}")


def position_to_json(position: Position | None) -> Json:
    """``{"offset": 5}``, ``{"key": [7]}`` or ``None``."""
    match position:
        case None:
            return None
        case OffsetPosition(rows):
            return {"offset": rows}
        case KeyPosition(values):
            return {"key": [scalar_to_json(v) for v in values]}


def describe_position(position: Position | None) -> str:
    """A position for a person: ``start``, ``offset 500``, ``id 12`` or ``key (7, 'x')``."""
    match position:
        case None:
            return "start"
        case KeyPosition((value,)):
            return str(value)
        case KeyPosition(values):
            return "(" + ", ".join(str(v) for v in values) + ")"
        case _:
            return f"offset {position.rows}"


def position_from_json(value: Json) -> Position | None:
    """The inverse of `position_to_json`; ValueError for anything else."""
    match value:
        case None:
            return None
        case {"offset": int(rows)} if not isinstance(rows, bool) and rows >= 0 and len(value) == 1:
            return OffsetPosition(rows)
        case {"key": list(values)} if values and len(value) == 1:
            return KeyPosition(tuple(scalar_from_json(v) for v in values))
    raise ValueError(f"not a position: {value!r}")


def checkpoint_to_json(checkpoint: Checkpoint) -> Json:
    """The JSON object of one split's checkpoint."""
    out: dict[str, Json] = {
        "split": checkpoint.split.id,
        "lower": position_to_json(checkpoint.split.lower),
        "upper": position_to_json(checkpoint.split.upper),
        "position": position_to_json(checkpoint.position),
        "rows": checkpoint.rows,
        "done": checkpoint.done,
    }
    if (between := checkpoint.split.between) is not None:
        ends = (None if end is None else scalar_to_json(end) for end in (between.first, between.last))
        out["between"] = [between.column, *ends]
    if checkpoint.detail is not None:
        out["detail"] = dict(checkpoint.detail)
    return out


def checkpoint_from_json(value: Json) -> Checkpoint:
    """The inverse of `checkpoint_to_json`; ValueError, KeyError or TypeError for anything else."""
    if not isinstance(value, dict) or not isinstance(value["rows"], int) or not isinstance(value["done"], bool):
        raise ValueError("not a checkpoint")
    return Checkpoint(
        split=Split(
            str(value["split"]),
            position_from_json(value["lower"]),
            position_from_json(value["upper"]),
            _between_from_json(value.get("between")),
        ),
        position=position_from_json(value["position"]),
        rows=value["rows"],
        done=value["done"],
        detail=value.get("detail"),
    )


def _between_from_json(value: Json) -> Between | None:
    if value is None:
        return None
    column, *ends = value
    first, last = (None if end is None else scalar_from_json(end) for end in ends)
    return Between(str(column), first, last)


def state_to_json(state: StreamState) -> Json:
    """The JSON object of a whole stream's state."""
    return {
        "version": 1,
        "stream": state.stream,
        "fingerprint": state.fingerprint,
        "epoch": state.epoch,
        "updated_at": state.updated_at,
        "paused": state.paused,
        "splits": [checkpoint_to_json(c) for c in state.checkpoints],
        "identity": identity_to_json(state.identity),
    }


def state_from_json(value: Json) -> StreamState:
    """The inverse of `state_to_json`; ValueError, KeyError or TypeError for anything else."""
    if not isinstance(value, dict) or value.get("version") != 1:
        raise ValueError("not a stream state of version 1")
    return StreamState(
        stream=str(value["stream"]),
        fingerprint=str(value["fingerprint"]),
        epoch=int(value["epoch"]),
        checkpoints=tuple(checkpoint_from_json(c) for c in value["splits"]),
        updated_at=str(value["updated_at"]),
        paused=value.get("paused") is True,
        identity=identity_from_json(value.get("identity")),
    )
