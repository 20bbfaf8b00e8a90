"""Owns what makes a record a CloudEvent: headers of version 1.0 in the Kafka binding's binary mode.

All records of a page are framed with the same headers, in C. An event's id is its own, so the page is framed with a
mark in its place, and each mark is then overwritten by an id of the same length: random for the page, counted in it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol

_COUNTED = 16  # hex digits


class _Block(Protocol):
    @property
    def partition(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def records(self) -> bytes | memoryview: ...


@dataclass(frozen=True, slots=True)
class StampedBlock:
    """Framed records that have ids."""

    partition: int
    count: int
    records: bytes


def stream_headers(app: str, source: str, stream: str) -> list[tuple[str, bytes]]:
    """The headers that all events of a stream have."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"producer.row"),
        ("ce_source", f"/{app}/{source}/{stream}".encode()),
        ("content-type", b"application/avro"),
    ]


def new_mark() -> bytes:
    """What stands for the ids of a page: 32 random hex digits, which nothing else in it will hold."""
    return secrets.token_hex(16).encode()


def stamped(blocks: Iterable[_Block], mark: bytes) -> Iterator[StampedBlock]:
    """The blocks of a page with an id in the place of each mark."""
    numbers = count()
    for block in blocks:
        records = bytearray(block.records)
        for found in re.finditer(mark, block.records):
            records[found.start() : found.end()] = mark[:-_COUNTED] + b"%016x" % next(numbers)
        yield StampedBlock(block.partition, block.count, bytes(records))
