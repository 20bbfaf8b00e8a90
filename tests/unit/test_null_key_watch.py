"""The watch for rows with NULL in their key: when it searches, and what of it is in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from producer import nullkeys
from producer.config import StreamConfig
from producer.errors import NullKeyError
from producer.model import Checkpoint, KeyPosition, NullKeys, NullRows, Page, RejectedRow, Split
from producer.modes import refuse_other_mode, tail_after
from producer.nullkeys import NullKeyWatch, known_rows, reader_detail

ROW = RejectedRow(pa.record_batch({"id": pa.array([None], pa.int64())}), {}, NullKeyError("NULL"))


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Table:
    """Rows with NULL by their digests; each search takes `search_s`."""

    clock: Clock
    search_s: float = 0.0
    rows: set[bytes] = field(default_factory=set)
    searches: int = 0

    async def null_columns(self, stream: StreamConfig) -> Sequence[str]:
        return ["id"]

    async def null_keys(self, stream: StreamConfig, named: int = 10) -> NullKeys:
        self.searches += 1
        self.clock.now += self.search_s
        return NullKeys({"id": len(self.rows)} if self.rows else {})

    async def null_rows(self, stream: StreamConfig, known: frozenset[bytes], *, limit: int, most: int) -> NullRows:
        await self.null_keys(stream)
        return NullRows(frozenset(self.rows), tuple((row, ROW) for row in sorted(self.rows - known)[:limit]))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    clock = Clock()
    monkeypatch.setattr(nullkeys, "time", clock)
    return Table(clock)


def watch(table: Table, bad: str = "dead_letter", *, ends: bool = False) -> NullKeyWatch:
    stream = StreamConfig.model_validate({"name": "s", "source": "s", "table": "t", "on_bad_record": bad})
    return NullKeyWatch(table, stream, ends=ends)


def page(rows: int, *, last: bool, detail: Mapping[str, object] | None = None) -> Page:
    return Page(pa.record_batch({"id": pa.array(range(rows), pa.int64())}), KeyPosition((rows,)), last, detail=detail)


async def test_polls_search_again_when_twenty_times_the_search_has_passed(table: Table) -> None:
    table.search_s, watching = 2.0, watch(table)
    searches = []
    for _ in range(90):  # a poll each second
        await watching.after(page(0, last=True))
        searches.append(table.searches)
        table.clock.now += 1
    assert searches == [1] * 40 + [2] * 40 + [3] * 10


async def test_a_stream_that_never_rests_searches_once_a_minute(table: Table) -> None:
    watching = watch(table)
    for _ in range(125):
        await watching.after(page(5, last=False))
        table.clock.now += 1
    assert table.searches == 2


async def test_a_run_to_the_end_searches_after_its_last_rows(table: Table) -> None:
    table.search_s, watching = 100.0, watch(table, ends=True)
    await watching.after(page(0, last=True))
    assert table.searches == 1
    after_rows = await watching.after(page(5, last=True))
    assert (after_rows.last, table.searches) == (False, 1)
    assert (await watching.after(page(0, last=True))).last
    assert table.searches == 2


async def test_the_rows_are_sent_before_the_stream_stops(table: Table) -> None:
    table.rows = {b"12345678"}
    watching = watch(table, "fail", ends=True)
    assert not (await watching.after(page(5, last=True))).last
    with pytest.raises(NullKeyError):
        await watching.after(page(0, last=True))


async def test_a_checkpoint_keeps_the_digests_beside_what_the_reader_keeps(table: Table) -> None:
    table.rows, watching = {b"12345678", b"abcdefgh"}, watch(table, ends=True)
    assert watching.restore({"holes": [1]}) == {"holes": [1]}
    found = await watching.after(page(0, last=True))
    assert (len(found.rejected), found.last) == (2, False)
    assert known_rows(found.detail) == table.rows
    assert reader_detail(found.detail) == {"holes": [1]}  # of a reader that says nothing of it

    watching = watch(table, ends=True)
    assert watching.restore(found.detail) == {"holes": [1]}
    again = await watching.after(page(0, last=True, detail={"holes": [2]}))
    assert (again.rejected, again.last) == ((), True)
    assert reader_detail(again.detail) == {"holes": [2]}
    table.rows = set()
    mended = await watching.after(page(0, last=True))
    assert mended.detail == {"holes": [2]}


async def test_nothing_is_kept_where_nothing_was_found(table: Table) -> None:
    watching = watch(table, ends=True)
    assert watching.restore(None) is None
    assert (await watching.after(page(0, last=True))).detail is None


def test_digests_are_no_reason_to_refuse_a_mode_and_go_to_the_split_that_follows() -> None:
    known = {"null_keys": "MTIzNDU2Nzg="}
    stream = StreamConfig.model_validate({"name": "s", "source": "s", "table": "t", "mode": "snapshot"})
    refuse_other_mode(stream, [Checkpoint(Split("0"), detail=known)])  # the snapshot of a table that was empty
    end = KeyPosition((9,))
    tail = tail_after(
        stream.model_copy(update={"mode": "tail"}), [Checkpoint(Split("0", None, end), end, detail=known)]
    )
    assert tail is not None
    assert known_rows(tail.detail) == {b"12345678"}
