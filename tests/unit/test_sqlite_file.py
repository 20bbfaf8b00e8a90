"""Which SQLite file is at a path."""

from __future__ import annotations

from pathlib import Path

from producer.sources.sql.origin import sqlite_origin
from producer.sources.sql.sqlite_file import file_number


def test_a_file_keeps_its_number_until_another_one_is_made(tmp_path: Path) -> None:
    path, moved = tmp_path / "a.db", tmp_path / "b.db"
    assert file_number(path) == ""
    path.write_text("one")
    number = file_number(path)
    assert number
    path.write_text("two")
    path.rename(moved)
    assert file_number(moved) == number
    for _ in range(20):  # a file system gives the number on the disk of a removed file to the next one
        moved.unlink()
        moved.write_text("one")
        assert file_number(moved) != number
        number = file_number(moved)


def test_another_file_at_another_path_has_no_name_in_common_with_a_removed_one(tmp_path: Path) -> None:
    names = []
    for path in (tmp_path / "a.db", tmp_path / "b.db"):
        path.write_text("one")
        names.append(set(sqlite_origin(path).names))
        path.unlink()
    assert len(names[0]) == 2 and not names[0] & names[1]
