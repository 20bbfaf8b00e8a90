"""A file of any format is cut at any of its places: it keeps exactly the rows before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from producer.encoding.schema import derive_value_schema
from producer.model import Dataset
from producer.sinks.files import FileMark, FileSink
from producer.sinks.formats import file_format
from tests.dump import read_back

ROWS: list[dict[str, Any]] = [
    {"id": 1, "text": 'a "brace" }\n],{ \\', "inner": {"list": [{"n": 1}, {"n": 2}], "empty": []}},
    {"id": 2, "text": "", "inner": {"list": [], "empty": [[]]}},
    {"id": 3, "text": None, "inner": None},
    {"id": 4, "text": "}", "inner": {"list": [{"n": None}], "empty": [[1], []]}},
]
INNER = pa.struct(
    [
        pa.field("list", pa.list_(pa.struct([pa.field("n", pa.int64())]))),
        pa.field("empty", pa.list_(pa.list_(pa.int64()))),
    ]
)
SCHEMA = pa.schema([pa.field("id", pa.int64()), pa.field("text", pa.string()), pa.field("inner", INNER)])
FORMATS: list[dict[str, Any]] = [
    {"name": name, "compress": compress, "indent": indent}
    for name in ("jsonl", "csv", "json", "avro")
    for compress in (False, True)
    for indent in ((None, 0, 1, 2) if name == "json" else (None,))
]


def sink(folder: Path, name: str, **options: Any) -> FileSink:
    dataset = Dataset(name="t", schema=SCHEMA, key=("id",), order=("id",), identity={}, rows_estimate=None)
    avro = derive_value_schema(dataset) if name == "avro" else None
    return FileSink(folder, "t", file_format(name, SCHEMA, avro_schema=avro, **options), SCHEMA)


def write(into: FileSink, chunks: list[list[dict[str, Any]]], *, after: bytes | None = None) -> bytes:
    """The file of the chunks, or of what is there before them."""
    form = into._format
    data = form.header if after is None else after
    for rows in chunks:
        separator = form.separator if len(data) > len(form.header) else b""
        data += separator + bytes(form.encode(pa.RecordBatch.from_pylist(rows, SCHEMA)))
    into.path().write_bytes(data + form.footer)
    return data


@pytest.mark.parametrize("options", FORMATS, ids=str)
@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1), (3, 1)])
def test_each_place_has_exactly_the_rows_before_it(
    tmp_path: Path, options: dict[str, Any], sizes: tuple[int, ...]
) -> None:
    files = sink(tmp_path, **options)
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    data = write(files, [ROWS[start : start + size] for start, size in zip(starts, sizes, strict=True)])
    whole = (tmp_path / files.path().name).read_bytes()
    ids = [int(row["id"]) for row in read_back([files.path()])]
    for wanted in range(len(ROWS) + 1):
        mark, kept = files.cut_mark(FileMark(1, len(data)), wanted)
        assert kept <= wanted
        files.path().write_bytes(whole[: mark.length] + files._format.footer)
        assert [int(row["id"]) for row in read_back([files.path()])] == ids[:kept]
        files.path().write_bytes(whole)


@pytest.mark.parametrize("then", [None, 0, 2])
@pytest.mark.parametrize("first", [None, 0, 2])
def test_rows_of_an_array_are_counted_whatever_the_indent_of_each(
    tmp_path: Path, first: int | None, then: int | None
) -> None:
    data = write(sink(tmp_path, "json", indent=first), [ROWS])
    files = sink(tmp_path, "json", indent=then)
    write(files, [ROWS], after=data)
    standing = files.standing()
    assert standing is not None and standing[1] == 2 * len(ROWS)
    mark, kept = files.cut_mark(standing[0], 6)
    files.path().write_bytes(files.path().read_bytes()[: mark.length] + b"\n]\n")
    assert [row["id"] for row in read_back([files.path()])] == [1, 2, 3, 4, 1, 2]
    assert kept == 6
