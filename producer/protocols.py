"""Owns the seams of the engine: what a source, a writer (sink), and a checkpoint store must do.

Implementations are chosen by name in `producer.sources`, `producer.sinks` and `producer.checkpoints`; they know
`model` and `errors`, and never one another. Every implementation runs the contract tests in ``tests/contract``.

All methods raise errors of `producer.errors` only, and none waits without a deadline. They may be cancelled at any
``await`` and then leave nothing half done that a restart would not mend.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from producer.model import (
    Between,
    Checkpoint,
    Dataset,
    Json,
    KeyDigest,
    KeyPage,
    KeyPosition,
    NullKeys,
    NullRows,
    Page,
    Position,
    ScannedPage,
    Split,
    StreamState,
)

if TYPE_CHECKING:
    from producer.config import StreamConfig


class PageReader(Protocol):
    """Reads the pages of one split, one at a time, in the order of the traversal."""

    async def fetch(self, position: Position | None, limit: int) -> Page:
        """At most `limit` rows after `position` (``None``: from the split's beginning), within the split.

        Fewer rows than `limit` do not mean the end; ``page.last`` does. The driver runs in a thread, in a short
        transaction of its own. After a TransientError the same reader is asked again (it reconnects by itself).
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class RememberingReader(PageReader, Protocol):
    """A reader whose pages carry a ``detail``: what it must know, beside the position, to go on."""

    def restore(self, detail: Mapping[str, Json] | None) -> None:
        """The next fetch goes on from what was committed: a position with this detail."""
        ...


@runtime_checkable
class WakingSource(Protocol):
    """A source that can tell that a followed stream has new rows."""

    async def listen(self, stream: StreamConfig, wake: Callable[[], None]) -> None:
        """Calls `wake` at each sign of new rows, until cancelled; returns at once for a stream without such signs."""
        ...


@runtime_checkable
class ReplaceableSource(Protocol):
    """A source whose tables can be replaced by others of the same name. Its readers tell it while they read."""

    async def refuse_replaced(self, stream: StreamConfig, checkpoints: Sequence[Checkpoint]) -> None:
        """TableReplacedError where that has happened since the checkpoints were written."""
        ...


@runtime_checkable
class OneSessionSource(Protocol):
    """A source whose session one process may use at a time."""

    def give_up(self) -> None:
        """Another process may have the session by now: the connection is closed, and what is asked fails with
        CheckpointConflictError until the next `start`."""
        ...


class Source(Protocol):
    """One configured source: a database, an account, an API."""

    async def start(self) -> None:
        """Connects and proves the credentials. Idempotent."""
        ...

    async def close(self) -> None: ...

    async def describe(self, stream: StreamConfig) -> Dataset:
        """What the stream's table (or chat) looks like. ConfigError names a table or column that is not there."""
        ...

    async def plan(self, stream: StreamConfig, dataset: Dataset) -> Sequence[Split]:
        """The splits of a fresh start: one for OFFSET, up to ``stream.max_parallel`` of about equal rows for
        ID_RANGE. For a snapshot the last split is bounded by what is there now, otherwise it is open; a tail has
        that one only."""
        ...

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> PageReader:
        """A reader with a connection of its own."""
        ...

    async def divide(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> Position | None:
        """A position inside what is left of the split, with about half of the rows on each side of it; None where
        that is not worth while, or cannot be told."""
        ...

    async def replay(self, stream: StreamConfig, dataset: Dataset, split_id: str, wanted: Between) -> Split:
        """The split that reads the rows with ``wanted.column`` (``""``: the key's first column) in the range once
        more. The ends of `wanted` are text as people write it; the split is bounded by what is there now.
        ConfigError for a column or value that is not one."""
        ...

    async def remaining(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> int | None:
        """About how many rows of the split are still to come (cheaply: estimates will do); None: not known."""
        ...


@runtime_checkable
class NullKeySource(Protocol):
    """A source whose rows may have NULL in a column of the key or order. Paging never reaches these."""

    async def null_columns(self, stream: StreamConfig) -> Sequence[str]:
        """The columns of the key and order in which a NULL is possible, by the source's catalogue as it was when the
        stream was described."""
        ...

    async def null_keys(self, stream: StreamConfig, named: int = 10) -> NullKeys:
        """Counts such rows among those that `stream` selects, and names `named` of them. Asks nothing where the
        source's catalogue says that there can be none."""
        ...

    async def null_rows(self, stream: StreamConfig, known: frozenset[bytes], *, limit: int, most: int) -> NullRows:
        """Reads up to `limit` such rows that are not `known` by their digests. NullKeyError where there are more than
        `most` in all."""
        ...


@runtime_checkable
class ScanningSource(Protocol):
    """A source that can read a whole stream once, by other means than its page readers."""

    def scan(
        self, stream: StreamConfig, dataset: Dataset, positions: Sequence[KeyPosition], replays: Sequence[Split]
    ) -> AsyncGenerator[ScannedPage] | None:
        """All rows that `stream` selects, each once, in the order of the traversal, in pages of bounded size; None
        where this source has no such way.

        No condition limits what is read, and nothing that the page readers have set is relied upon. Rows that cannot
        be read are put aside (``rejected``), whatever `stream` says. A scan that broke (TransientError) has to be
        started again from the beginning.
        """
        ...


class KeyReader(Protocol):
    """Reads a table's keys alone, by ranges: those after `lower` and up to `upper` (``None``: open on that side)."""

    async def digest(self, lower: Position | None, upper: Position | None) -> KeyDigest | None:
        """Of the range's keys, as they are now; None where that cannot be had without reading them."""
        ...

    async def fetch(self, lower: Position | None, upper: Position | None, limit: int) -> KeyPage:
        """The first keys of the range, at most `limit`, in order."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class KeyedSource(Protocol):
    """A source whose keys can be read by ranges, and that may tell whether these have changed."""

    async def keys(self, stream: StreamConfig) -> KeyReader:
        """Of the rows that `stream` selects; a reader with a connection of its own."""
        ...


@runtime_checkable
class TellingSource(Protocol):
    """What a source may tell by itself; the service puts its own functions in these places before `start`.

    Each gets the stream's name first ('' where all streams of the source are meant).
    """

    on_news: Callable[[str], None]  # there may be new rows: do not wait for the next poll
    on_wait: Callable[[str, float], None]  # a rate limit has cost so many seconds
    on_retry: Callable[[str, str], None]  # a request is repeated, for this reason


class PreparedPage(Protocol):
    """A page that has been encoded and waits to be submitted."""

    @property
    def rows(self) -> int: ...

    @property
    def bytes(self) -> int:
        """The memory it holds, which counts against ``max_inflight_bytes``."""
        ...


P = TypeVar("P", bound=PreparedPage)


class PageWriter(Protocol[P]):
    """Writes one stream's pages to its topic (or file)."""

    def prepare(self, page: Page) -> P:
        """Encodes (CPU only, no I/O; called in a worker thread, for several pages at once)."""
        ...

    async def submit(self, prepared: P) -> asyncio.Future[None]:
        """Hands the page over in order; the future is done when all of its records are acknowledged.

        Waits while the sink's own queue is full. Pages of one split are submitted one after the other. When a
        future fails, pages submitted after it may or may not have been written: the caller rewinds.
        """
        ...

    async def close(self) -> None:
        """Lets go; what has not been acknowledged by then never counts as such."""
        ...


class TransactionalWriter(PageWriter[P], Protocol[P]):
    """A writer whose pages count when they are committed, together with the checkpoint after them."""

    async def begin(self) -> None:
        """Fences who began before, and drops what had not been committed. Needed first, and after every failure."""
        ...

    async def commit(self, topic: str, records: Sequence[tuple[int, bytes, bytes | None]]) -> None:
        """Commits the acknowledged pages and `records` (partition, key, value) of `topic`, all or none."""
        ...


class CheckpointStore(Protocol):
    """Keeps StreamStates so that they survive any crash; see `producer.model` for what they hold."""

    async def start(self) -> None: ...

    async def close(self) -> None:
        """Releases all claims."""
        ...

    async def load(self, stream: str) -> StreamState | None:
        """The newest committed state, or None. CheckpointCorruptError where there is one that cannot be read."""
        ...

    async def claim(self, stream: str, above: int = 0) -> int:
        """Becomes the only runner of `stream`: the new epoch, over `above`. CheckpointConflictError while another
        one is alive (where the store can know), else the older runner's next commit fails with it."""
        ...

    async def begin(self, state: StreamState) -> None:
        """Writes a stream's first state (a new plan) whole, in the place of any older one. Needs the claim."""
        ...

    async def commit(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> None:
        """Durably replaces the given splits' checkpoints, all or none. CheckpointConflictError if `epoch` is no
        longer the newest."""
        ...

    async def set_paused(self, stream: str, epoch: int, paused: bool) -> None:
        """Durably changes ``StreamState.paused``. Needs the claim and a state that has begun."""
        ...

    async def reset(self, stream: str) -> bool:
        """Forgets the stream; False if there was nothing. CheckpointConflictError while a runner holds it."""
        ...

    async def streams(self) -> Sequence[str]:
        """The names of all streams with a state, sorted."""
        ...


class LendingStore(CheckpointStore, Protocol):
    """A store in Kafka, whose checkpoints can be records of a writer's transaction."""

    @property
    def topic(self) -> str: ...

    @property
    def partitions(self) -> int:
        """Of the topic: as many units can a stream's work be shared in."""
        ...

    async def release(self, stream: str) -> None:
        """Gives a claim up, for another process to take."""
        ...

    async def load_all(self, streams: Sequence[str]) -> Sequence[StreamState | None]:
        """As `load`, of each: all as of one moment, and in one read however many they are."""
        ...

    async def begin_units(self, state: StreamState, units: Sequence[StreamState]) -> None:
        """Writes a stream's first state and those of its units, all or none. Needs the claim of the stream."""
        ...

    async def add(self, stream: str, epoch: int, unit: str, checkpoint: Checkpoint) -> None:
        """Durably puts a new split into a unit of the stream, whoever runs that. Needs the claim of the stream."""
        ...

    def transactional_id(self, stream: str) -> str:
        """The id that a stream's runner holds; whoever begins with it later fences the one before."""
        ...

    async def lend(self, stream: str, epoch: int) -> None:
        """Leaves the id to the stream's writer. CheckpointConflictError where `epoch` is no longer the newest."""
        ...

    def records(
        self, stream: str, epoch: int, changed: Sequence[Checkpoint]
    ) -> Sequence[tuple[int, bytes, bytes | None]]:
        """The given splits' checkpoints as records (partition, key, value) of `topic`."""
        ...
