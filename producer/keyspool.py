"""Owns what a search for deleted rows remembers: the keys on a topic, and those that the source had when last asked.

A temporary SQLite database: `CACHE_BYTES` of it in memory, the rest in a file that nobody else sees and that is gone
with the process. What holds between two searches: every key that is on the topic, and was not in the source when it was
last asked, is a *suspect*. A key becomes one when a record with it arrives on the topic, or its range of the source is
read anew without it; it is one until its tombstone is on the topic, or the source has it again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence

CACHE_BYTES = 32 * 2**20

_TABLES = """
CREATE TABLE topic (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE source (range INTEGER, key BLOB, PRIMARY KEY (range, key)) WITHOUT ROWID;
CREATE TABLE suspect (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE record (key BLOB, gone INTEGER);
CREATE TABLE newest (key BLOB PRIMARY KEY, gone INTEGER) WITHOUT ROWID;
"""


class KeySpool:
    """Keys are bytes. Not for two threads at a time; after an error it is good for nothing but `close`."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(f"PRAGMA cache_size = -{CACHE_BYTES // 1024:d}")
        self._database.executescript(_TABLES)

    def close(self) -> None:
        self._database.close()

    def record(self, records: Sequence[tuple[bytes, bool]]) -> None:
        """More of the topic's records, those of one key in their order: the key, and whether it is a tombstone."""
        with self._transaction():
            self._database.executemany("INSERT INTO record VALUES (?, ?)", records)

    def recorded(self) -> None:
        """The topic has been read as far as it goes now: the last record of each key counts."""
        with self._transaction():
            self._database.execute(
                "INSERT INTO newest SELECT key, gone FROM (SELECT key, gone, max(rowid) FROM record GROUP BY key)"
            )
            self._database.execute("DELETE FROM record")
            self._database.execute("INSERT OR IGNORE INTO topic SELECT key FROM newest WHERE NOT gone")
            self._database.execute("DELETE FROM topic WHERE key IN (SELECT key FROM newest WHERE gone)")

    def forget(self, number: int) -> None:
        """The source's range of this number is about to be read anew."""
        with self._transaction():
            self._database.execute("INSERT OR IGNORE INTO suspect SELECT key FROM source WHERE range = ?", (number,))
            self._database.execute("DELETE FROM source WHERE range = ?", (number,))

    def add(self, number: int, keys: Sequence[bytes]) -> None:
        """Keys that the source has, in the range of this number."""
        with self._transaction():
            self._database.executemany("INSERT OR IGNORE INTO source VALUES (?, ?)", ((number, key) for key in keys))

    def deleted(self, most: int) -> list[bytes]:
        """The keys that are on the topic and not in the source, `most` of them at most. Both have been told of."""
        with self._transaction():
            # After the first keys have been put in: an index that grows with them costs twice as much.
            self._database.execute("CREATE INDEX IF NOT EXISTS source_key ON source (key)")
            self._database.execute(
                "INSERT OR IGNORE INTO suspect SELECT key FROM newest "
                "WHERE NOT gone AND NOT EXISTS (SELECT 1 FROM source WHERE source.key = newest.key)"
            )
            self._database.execute("DELETE FROM newest")
            self._database.execute(
                "DELETE FROM suspect WHERE EXISTS (SELECT 1 FROM source WHERE source.key = suspect.key) "
                "OR NOT EXISTS (SELECT 1 FROM topic WHERE topic.key = suspect.key)"
            )
            found = self._database.execute("SELECT key FROM suspect LIMIT ?", (most,)).fetchall()
        return [key for (key,) in found]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN")
        yield
        self._database.execute("COMMIT")
