"""Compares two sides of any size by the hashes of their keys and values.

A side is what was read from it, in order: 21 bytes a record, in memory while there are few, in temporary files by the
key's hash (256 of them) when there are many; one piece of both is compared at a time. Of several records with one key
the last one counts. The hashes are Python's own of bytes (SipHash with 64 bits, salted anew in each process).
"""

from __future__ import annotations

import enum
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

PIECES = 256
#: Records that a side keeps in memory before it writes them to files.
MAX_IN_MEMORY = 500_000
_RECORD = np.dtype([("key", "<i8"), ("value", "<i8"), ("flag", "u1"), ("place", "<u4")])

Hashes = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]


class Side:
    """The records of one side. ``flag`` and ``place`` are the caller's own: see `compare`. Leaving the ``with`` block
    removes the files."""

    def __init__(self, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self.count = 0
        self._max = max_in_memory
        self._waiting: list[Records] = []
        self._waiting_count = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def in_files(self) -> bool:
        return self._folder is not None

    def add(
        self,
        keys: Hashes,
        values: Hashes,
        flags: npt.NDArray[np.bool_] | bool,
        places: npt.NDArray[np.integer[Any]] | int = 0,
    ) -> None:
        """Adds records after those that are there; `places` numbers the part of the side that they are from."""
        records = np.empty(len(keys), dtype=_RECORD)
        records["key"], records["value"], records["flag"], records["place"] = keys, values, flags, places
        self._waiting.append(records)
        self.count += len(records)
        self._waiting_count += len(records)
        if self._waiting_count >= self._max:
            self.write_files()

    def clear(self) -> None:
        """Forgets all records."""
        self.close()
        self.count = 0
        self._waiting, self._waiting_count = [], 0

    def close(self) -> None:
        """Removes the files."""
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def write_files(self) -> None:
        """Moves what is in memory to the files."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="producer-verify-")
        records = self._take()
        piece = (records["key"].view(np.uint64) >> np.uint64(56)).astype(np.uint8)
        order = np.argsort(piece, kind="stable")
        records = records[order]
        ends = np.cumsum(np.bincount(piece, minlength=PIECES))
        for number, part in enumerate(np.split(records, ends[:-1])):
            if len(part):
                with open(self._file(number), "ab") as file:
                    part.tofile(file)

    def piece(self, number: int) -> Records:
        """The records of a piece, in the order in which they came; of a side in memory, all of them are piece 0."""
        if self._folder is None:
            return self._take()
        path = self._file(number)
        return np.fromfile(path, dtype=_RECORD) if path.exists() else np.empty(0, dtype=_RECORD)

    def _file(self, number: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{number:03}"

    def _take(self) -> Records:
        taken = np.concatenate(self._waiting) if self._waiting else np.empty(0, dtype=_RECORD)
        self._waiting, self._waiting_count = [], 0
        return taken


class Kind(enum.IntEnum):
    """What a row of the source says about the topic."""

    KNOWN = 0  # the key may be there, with any value; nothing is counted
    PENDING = 1  # the same; counted where it is not there
    NEEDED = 2  # it must be there, with this value


@dataclass(frozen=True, slots=True)
class Places:
    """For each place of the source's rows its kind and the number of its range, which is below `ranges`."""

    kinds: npt.NDArray[np.uint8]
    range_of: npt.NDArray[np.intp]
    ranges: int


class RangeCounts:
    """Counts and checksums of the rows that must be on the topic: arrays with an item for each range.

    The topic's checksum of a range is that of its keys with the values on the topic.
    """

    def __init__(self, ranges: int) -> None:
        self.rows, self.missing, self.differing = (np.zeros(ranges, np.int64) for _ in range(3))
        self.source_checksum, self.topic_checksum = (np.zeros(ranges, np.uint64) for _ in range(2))


@dataclass(slots=True)
class Comparison:
    """What `compare` found. The hashes are those of keys, `limit` of each kind at most; the counts are of all.

    ``null_keys`` counts the rows that cannot be sent because a column of the key or order is NULL, by that column.
    """

    ranges: RangeCounts

    source_rows: int = 0
    source_repeats: int = 0  # rows with the key of a later row
    topic_records: int = 0
    topic_keys: int = 0  # with a value as of now
    duplicates: int = 0  # records with the key and the value of the record before them
    updates: int = 0  # records with the key of an earlier one, and another value
    deleted: int = 0  # keys of which the last record is a tombstone
    pending: int = 0  # rows that need not be there yet, and are not
    dead_lettered: int = 0  # rows that are in the dead letters, and not on the topic as they are now
    missing: int = 0
    unexpected: int = 0
    differing: int = 0
    source_checksum: int = 0
    topic_checksum: int = 0
    missing_keys: set[int] = field(default_factory=set)
    unexpected_keys: set[int] = field(default_factory=set)
    differing_keys: set[int] = field(default_factory=set)
    null_keys: dict[str, int] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        lost = self.missing or self.unexpected or self.differing or self.null_keys
        return not lost and self.source_checksum == self.topic_checksum


def compare(source: Side, topic: Side, limit: int, places: Places) -> Comparison:
    """Compares both sides and uses them up.

    The flag of a row of the source: it is in the dead letters. The flag of a record of the topic: it is a tombstone.

    The checksums are sums over the keys that must be there or are not known, of a hash of key and value: equal sets
    give equal sums in any order.
    """
    found = Comparison(RangeCounts(places.ranges))
    for ours, theirs in _pieces(source, topic):
        _compare(found, ours, theirs, limit, places)
    return found


def _pieces(source: Side, topic: Side) -> Iterator[tuple[Records, Records]]:
    if not source.in_files and not topic.in_files:
        yield source.piece(0), topic.piece(0)
        return
    source.write_files()
    topic.write_files()
    for number in range(PIECES):
        yield source.piece(number), topic.piece(number)


def _compare(found: Comparison, source: Records, topic: Records, limit: int, places: Places) -> None:
    rows, last = _by_key(source)
    found.source_rows += len(rows)
    found.source_repeats += int(np.count_nonzero(~last))
    rows = rows[last]
    records, last = _by_key(topic)
    found.topic_records += len(records)
    if len(records):
        again = ~last[:-1]  # the next record has the same key
        same = again & (records["value"][1:] == records["value"][:-1]) & (records["flag"][1:] == records["flag"][:-1])
        found.duplicates += int(np.count_nonzero(same))
        found.updates += int(np.count_nonzero(again & ~same))
    records = records[last]
    tombstone = records["flag"] == 1
    found.deleted += int(np.count_nonzero(tombstone))
    records = records[~tombstone]
    found.topic_keys += len(records)

    at, there = _find(rows["key"], records["key"])
    kind, of_range = places.kinds[rows["place"]], places.range_of[rows["place"]]
    same = np.zeros(len(rows), dtype=bool)
    same[there] = rows["value"][there] == records["value"][at[there]]
    dead = (rows["flag"] == 1) & ~same & (kind != Kind.KNOWN)
    needed = (kind == Kind.NEEDED) & ~dead
    _, known = _find(records["key"], rows["key"])
    found.dead_lettered += int(np.count_nonzero(dead))
    found.pending += int(np.count_nonzero(~there & (kind == Kind.PENDING) & ~dead))
    found.missing += _note(found.missing_keys, rows["key"][~there & needed], limit)
    found.differing += _note(found.differing_keys, rows["key"][there & needed & ~same], limit)
    found.unexpected += _note(found.unexpected_keys, records["key"][~known], limit)
    counted = ~known
    counted[at[there & needed]] = True
    ours, theirs = _mixed(rows), _mixed(records)
    found.source_checksum = (found.source_checksum + _sum(ours[needed])) % 2**64
    found.topic_checksum = (found.topic_checksum + _sum(theirs[counted])) % 2**64
    by, has = found.ranges, there & needed
    for counts, chosen in ((by.rows, needed), (by.missing, needed & ~there), (by.differing, has & ~same)):
        counts += np.bincount(of_range[chosen], minlength=len(counts))
    np.add.at(by.source_checksum, of_range[needed], ours[needed])
    np.add.at(by.topic_checksum, of_range[has], theirs[at[has]])


def _by_key(records: Records) -> tuple[Records, npt.NDArray[np.bool_]]:
    """Sorted by key, those of one key in the order in which they came, and which of them is its key's last."""
    records = records[np.argsort(records["key"], kind="stable")]
    last = np.ones(len(records), dtype=bool)
    last[:-1] = records["key"][1:] != records["key"][:-1]
    return records, last


def _find(wanted: Hashes, keys: Hashes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where each of `wanted` stands in the sorted `keys`, and whether it is there at all."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.intp), np.zeros(len(wanted), dtype=bool)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def _note(keys: set[int], hashes: Hashes, limit: int) -> int:
    keys.update(int(key) for key in hashes[: max(0, limit - len(keys))])
    return len(hashes)


def _mixed(records: Records) -> npt.NDArray[np.uint64]:
    """A hash of key and value, of each record."""
    key, value = (np.ascontiguousarray(records[name]).view(np.uint64) for name in ("key", "value"))
    mixed: npt.NDArray[np.uint64] = key * np.uint64(0x9E3779B97F4A7C15) ^ value
    mixed ^= mixed >> np.uint64(29)
    return mixed * np.uint64(0xBF58476D1CE4E5B9)


def _sum(hashes: npt.NDArray[np.uint64]) -> int:
    return int(hashes.sum(dtype=np.uint64))
