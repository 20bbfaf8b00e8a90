"""Finds the places in a file at which it can be cut: how many rows are before each one, and how many bytes.

Each function reads a file of one format from its beginning and yields ``(rows, length)`` pairs in order, the place
before the first row included. Rows that a crash left unfinished have no place.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO

#: The bytes of a file, in pieces of any size (a binary file iterates over its lines).
Pieces = Iterable[bytes]
Ends = Callable[[Pieces], Iterator[tuple[int, int]]]

_READ_BYTES = 2**20
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')


def line_ends(pieces: Pieces) -> Iterator[tuple[int, int]]:
    """JSONL: a row a line."""
    length = 0
    yield 0, 0
    for rows, line in enumerate(_lines(pieces), start=1):
        length += len(line)
        if line.endswith(b"\n"):
            yield rows, length


def csv_ends(pieces: Pieces) -> Iterator[tuple[int, int]]:
    """CSV with a header row. A line break within quotes, which is after an odd number of them, ends no row."""
    rows, length, quotes = -1, 0, 0
    for line in _lines(pieces):
        length += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            rows += 1
            yield rows, length


def json_ends(pieces: Pieces) -> Iterator[tuple[int, int]]:
    """An array of rows on any number of lines each: a row ends at the end of a line, where only the array is open."""
    rows, length, depth = 0, 0, 0
    for line in _lines(pieces):
        if not line.endswith(b"\n"):
            return
        structure = _STRINGS.sub(b"", line)
        depth += sum(map(structure.count, (b"{", b"["))) - sum(map(structure.count, (b"}", b"]")))
        body = line.removesuffix(b"\n").removesuffix(b",")
        if length == 0:
            yield 0, len(line)
        elif depth == 0:
            return
        elif depth == 1 and body:
            rows += 1
            yield rows, length + len(body)
        length += len(line)


def gzip_ends(ends: Ends) -> Ends:
    """The same format in gzip members: it can be cut where a member and a row end together."""

    def compressed(pieces: Pieces) -> Iterator[tuple[int, int]]:
        members: dict[int, int] = {0: 0}  # length of the text -> of the file, at the ends of members
        for rows, length in ends(_texts(pieces, members)):
            if length in members:
                yield rows, members[length]

    return compressed


def avro_ends(header_bytes: int) -> Ends:
    """An object container file: it can be cut between blocks."""

    def blocks(pieces: Pieces) -> Iterator[tuple[int, int]]:
        data = memoryview(b"".join(pieces))  # a block's bytes are skipped, not copied
        rows, length = 0, header_bytes
        yield rows, length
        while (count := _long(data, length)) is not None and (size := _long(data, count[1])) is not None:
            rows, length = rows + count[0], size[1] + size[0] + 16
            if length > len(data):
                return
            yield rows, length

    return blocks


def _lines(pieces: Pieces) -> Iterator[bytes]:
    """The lines, the last one without its line break where it has none."""
    rest: list[bytes] = []
    for piece in pieces:
        *lines, last = piece.split(b"\n")
        for line in lines:
            yield b"".join((*rest, line, b"\n"))
            rest = []
        if last:
            rest.append(last)
    if rest:
        yield b"".join(rest)


def _texts(pieces: Pieces, members: dict[int, int]) -> Iterator[bytes]:
    """The decompressed text up to the last whole member; notes the lengths at the ends of members."""
    text_length = file_length = 0
    decompressor = zlib.decompressobj(wbits=31)
    for piece in pieces:
        while piece:
            try:
                text = decompressor.decompress(piece)
            except zlib.error:
                return
            text_length += len(text)
            file_length += len(piece) - len(decompressor.unused_data)
            piece = decompressor.unused_data
            if decompressor.eof:
                members[text_length] = file_length
                decompressor = zlib.decompressobj(wbits=31)
            yield text


def _long(data: memoryview, at: int) -> tuple[int, int] | None:
    """Avro's variable-length integer at `at` and the place after it; None where the data end before."""
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return (value >> 1) ^ -(value & 1), at
    return None


def pieces_of(file: IO[bytes], length: int | None = None) -> Iterator[bytes]:
    """The first `length` bytes of a file, or all of them."""
    left = length
    while data := file.read(_READ_BYTES if left is None else min(left, _READ_BYTES)):
        yield data
        left = None if left is None else left - len(data)
