"""Owns the seam between the SQL source and a database: what a dialect tells of a table, and how it runs a query."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import pyarrow as pa

from producer.holes import Snapshot
from producer.identity import Identity
from producer.model import Json, KeyScalar, RejectedRow
from producer.sources.sql.lexis import Lexis
from producer.zones import Offset

#: Values bound to the parameters of a query, by name.
Params = Mapping[str, Json | KeyScalar]

#: A page's result is read no further once it holds so many bytes, and two rows.
MAX_RESULT_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Options:
    """Where and how to connect. Times in seconds."""

    url: str
    statement_timeout_s: float
    connect_timeout_s: float


@dataclass(frozen=True, slots=True)
class WriterZone:
    """The time zone in which the times of a column without one are written.

    `offsets` are those of a configured zone, see `producer.zones.lowest_offsets`; None: `name` is the database's own
    name of its zone, by which it can compute them.
    """

    name: str
    offsets: tuple[Offset, ...] | None = None

    def offset(self, epoch: str) -> str:
        """SQL for the seconds ahead of UTC at a moment, of which `epoch` is the SQL in seconds since 1970."""
        assert self.offsets, "the database computes them"
        *cases, last = self.offsets
        if not cases:
            return f"{last.seconds:d}"
        whens = (f"WHEN {epoch} < {case.until:d} THEN {case.seconds:d}" for case in cases)
        return f"CASE {' '.join(whens)} ELSE {last.seconds:d} END"


#: By so many hours at most the clock of a zone is put back that only the database knows.
PUT_BACK_HOURS = 3


@dataclass(frozen=True, slots=True)
class Unfit:
    """Rows (alias ``t``) that meet `condition` have no key that can be used: `reason`. They may be `rejected` as bad
    records; otherwise rows would be skipped after them."""

    condition: str
    reason: str
    rejected: bool


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `field` as it stands in pages, `select` the SQL expression that yields it from the table under the
    alias ``t``, `sql_type` for casts.

    `guard` is an expression whose values the dialect checks beside the column's own; it is selected after all columns.
    `refused` says why the column cannot be read at all ('' where it can); it matters only when it is selected. `wire`
    is the type that `select` has, for a dialect that reads values off the wire itself ('' where it does not).
    `compared` is for a column that stores its values in several ways: its side and the other one's, ``{}``, when it is
    compared with a value of its type. `whole` is for a column of integers that may hold other things as well: the
    condition that a row has an integer there.

    A key column's value comes back to the database in positions. `operators` are the comparisons that agree with the
    column's order, by their usual signs, where these signs may mean others; ``{}`` in `operand` stands for the column
    in them. `position` is the expression of the value's text where its form in pages cannot be read back ('' where it
    can); `cast` the type that reads it, if it is not `sql_type`. `unfit` finds the rows whose values cannot be a key.
    `absent` is the condition that the column is NULL, where ``IS NULL`` says so of other values, too.
    """

    name: str
    field: pa.Field
    select: str
    sql_type: str
    guard: str = ""
    refused: str = ""
    sortable: bool = True
    wire: str = ""
    compared: tuple[str, str] = ("", "{}")
    whole: str = ""
    operators: Mapping[str, str] = field(default_factory=dict)
    operand: str = "{}"
    position: str = ""
    cast: str = ""
    unfit: Unfit | None = None
    absent: str = ""

    def operator(self, sign: str) -> str:
        """How the comparison `sign` is written for this column."""
        return self.operators.get(sign, sign)


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view as the database describes it.

    `source` is its quoted name for FROM. `unique` lists the column sets that are unique without nulls, the primary
    key first. `inherited` says that other tables' rows are among its own (PostgreSQL's INHERITS), which no unique index
    covers. `row_bytes_estimate` is for databases whose `Session.estimate` does not know it. `shape` is another text
    when a column has come or gone, or changed its name or type. `untracked` is the statement that would let this user
    see which transaction wrote a row ('' where nothing is lacking). `filtered`: row-level security may hide rows.
    `generation` is the dialect's expression of which table this is, see `producer.sources.sql.generation`; `storage` is
    the name by which it finds where the rows are kept ('' where it cannot).
    """

    path: tuple[str, ...]
    source: str
    columns: tuple[Column, ...]
    unique: tuple[tuple[str, ...], ...] = ()
    comment: str = ""
    is_view: bool = False
    inherited: bool = False
    row_bytes_estimate: int | None = None
    shape: str = ""
    untracked: str = ""
    filtered: bool = False
    generation: str = ""
    storage: str = ""

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT whose result has `columns`, after them their guards and the texts of their positions; ``:name`` in `sql`
    stands for ``params[name]``.

    `types` gives the SQL type of a parameter where a dialect needs it. `key` names the columns that tell rows apart,
    in positions and errors. With `salvage` rows that cannot be read are put aside, and do not fail the query. `watched`
    is the table whose present shape is wanted with the rows.
    """

    sql: str
    columns: tuple[Column, ...]
    params: Params = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    salvage: bool = False
    watched: Table | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """A query's result; `key_at` gives the key of a row, the rejected ones counted, as the database compares it.

    `cut` where the result goes on after these rows: they were enough for the memory of one page. `rejected` are the
    rows that are not in `batch`, each with its number. `shape` is that of the query's `watched` table, and was so when
    the rows were read. `generation` says which table that was, as JSON ('' where the database does not tell).
    """

    batch: pa.RecordBatch
    key_at: Callable[[int], tuple[KeyScalar, ...]]
    cut: bool = False
    rejected: tuple[tuple[int, RejectedRow], ...] = ()
    shape: str = ""
    generation: str = ""

    @property
    def count(self) -> int:
        """All that were read: those that could not be read, too."""
        return int(self.batch.num_rows) + len(self.rejected)


class Session(Protocol):
    """One connection, used by one caller at a time. It connects when first used, and again after it broke."""

    async def fetch(self, query: Query) -> Rows:
        """Runs `query` in a read-only transaction of its own, within the statement timeout."""
        ...

    async def keys(self, query: Query) -> list[tuple[KeyScalar, ...]]:
        """All rows of a query of key columns, each value as a position holds it."""
        ...

    async def estimate(self, query: Query) -> tuple[int, int] | None:
        """About how many rows `query` has, and of how many bytes each; None where that is not known."""
        ...

    async def snapshot(self) -> Snapshot | None:
        """Which transactions have ended now; None where the database does not number them."""
        ...

    async def close(self) -> None: ...


class Database(Protocol):
    """A dialect: reflection, sessions, and the few ways in which the SQL differs."""

    #: the character around quoted identifiers
    mark: str
    #: how SQL text is read
    lexis: Lexis
    #: whether ``(a, b) > (x, y)`` is answered from an index
    row_values: bool
    #: whether `Session.estimate` is quick and good for any range of keys
    has_planner: bool

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def table(self, name: str, *, decimal: str | None) -> Table:
        """Reflects; ConfigError with the nearest name where there is no such table."""
        ...

    async def parameter_types(self, sql: str, names: tuple[str, ...]) -> Mapping[str, str]:
        """SQL types of the parameters of a user's query, where the dialect needs them; ConfigError if it is wrong."""
        ...

    async def origin(self, table: Table) -> Identity:
        """What the table's database is, by names that stay the same where it gets another address."""
        ...

    def session(self) -> Session: ...

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Calls `wake` whenever the database notifies `channel`, and after each time when it may have; until cancelled.
        ConfigError where the database has no such thing."""
        ...

    def inserted_since(self, table: Table, least: int) -> str | None:
        """A condition on rows (alias ``t``): written by the transaction `least` or a later one. None where the database
        cannot tell; rows that it says more of do no harm."""
        ...

    def kept(self, part: str, since: int, *, rewritten: bool) -> str | None:
        """A condition on rows (alias ``t``) of a part of a table: they are older than its storage. Committed before
        the transaction `since`, or written by a statement that rewrote all rows. None where the database cannot tell.
        """
        ...

    def checksum(self, columns: tuple[Column, ...]) -> str | None:
        """An expression of a row's values (alias ``t``): a whole number of some 60 bits, another one for other values.
        None where the database has no such function. It need not be the same in another process."""
        ...

    async def time_zone(self) -> str:
        """The zone that a new session has by default: times without one are assumed to be written in it. ConfigError
        where the database cannot tell what its clock shows there."""
        ...

    def older_than(self, column: Column, seconds: float, zone: WriterZone | None) -> str:
        """A condition: the time in `column` (alias ``t``) is so long ago, by the database's clock.

        `zone` is that of a column without a zone of its own. A local time that the zone's clock may show once more,
        because it is about to be put back, is not yet long ago."""
        ...

    def sample(self, table: Table, rows: int | None) -> str | None:
        """FROM clause (alias ``t``) of enough rows for quantiles, a random sample of a big table; None where the
        database has no sampling."""
        ...


class Scan(Protocol):
    """One read-only transaction on a connection of its own, with settings that are stated for it alone.

    Values are written into the statement as literals: no parameter is bound in the way of `Session`.
    """

    async def first(self, query: Query) -> tuple[KeyScalar, ...] | None:
        """The key of the first row of `query`; None where there is no row. EncodeError for a key that has no form."""
        ...

    def rows(self, query: Query) -> AsyncGenerator[Rows]:
        """The whole result in pages of bounded size, however long it takes."""
        ...


@runtime_checkable
class ScanningDatabase(Protocol):
    """A dialect that can read a table in one statement."""

    def open_scan(self) -> AbstractAsyncContextManager[Scan]: ...
