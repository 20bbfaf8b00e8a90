"""Owns what is measured against what: each suite is a list of cases that are run in turn, round after round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.measure import Sample
from benchmarks.peers import copy_out, debezium, librdkafka, naive, ours
from benchmarks.servers import Servers
from benchmarks.tables import Table, events, heavy, wide

OURS = "ours"
EXACTLY_ONCE = "ours, exactly once"
DEBEZIUM = "Debezium"
OURS_PLAIN = "ours, no headers"
LIBRDKAFKA = "librdkafka, ready bytes"
LIBRDKAFKA_PLAIN = "librdkafka, no headers"
LIBRDKAFKA_REPORTS = "librdkafka, reports"
LIBRDKAFKA_LEVEL = "librdkafka, our level of zstd"
NAIVE = "naive loop"
COPY = "COPY to nowhere"


@dataclass(frozen=True, slots=True)
class Case:
    """One bar: `competitor` doing `workload`. `tables` are PostgreSQL's, to be dropped after the suite."""

    workload: str
    competitor: str
    measure: Callable[[Servers], Sample]
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """How big a run is; `rows` is that of the main table."""

    rows: int
    quick: bool
    exactly_once: bool


def _case(workload: str, competitor: str, measure: Callable[..., Sample], table: Table, **more: object) -> Case:
    return Case(workload, competitor, lambda servers: measure(servers, table, **more), (table,))


def peers(scale: Scale) -> list[Case]:
    """The main comparison: nine columns, 200 bytes, PostgreSQL to a topic of 4 partitions."""
    table = events(scale.rows)
    case = partial(_case, "9 columns, 200 B", table=table)
    cases = [
        case(competitor=COPY, measure=copy_out.measure),
        case(competitor=OURS, measure=ours.measure),
        case(competitor=LIBRDKAFKA, measure=librdkafka.measure),
        case(competitor=LIBRDKAFKA_REPORTS, measure=librdkafka.measure, reports=True),
        case(competitor=LIBRDKAFKA_LEVEL, measure=librdkafka.measure, level=1),
        case(competitor=OURS_PLAIN, measure=ours.measure, headers=False),
        case(competitor=LIBRDKAFKA_PLAIN, measure=librdkafka.measure, headers=False),
        case(competitor=NAIVE, measure=naive.measure),
        case(competitor=DEBEZIUM, measure=debezium.measure),
    ]
    if scale.exactly_once:
        cases.insert(2, case(competitor=EXACTLY_ONCE, measure=ours.measure, exactly_once=True))
    return cases


def databases(scale: Scale) -> list[Case]:
    """The same table in each database."""
    names = {"postgres": "PostgreSQL", "sqlite": "SQLite", "mariadb": "MariaDB"}
    return [_case(name, OURS, ours.measure, events(scale.rows), database=database) for database, name in names.items()]


def shapes(scale: Scale) -> list[Case]:
    """Narrow and wide tables, light and heavy rows, against the peers."""
    part = 10 if scale.quick else 1
    tables = {
        "1 column": wide(1, 1_000_000 // part),
        "10 columns": wide(10, 1_000_000 // part),
        "200 columns": wide(200, 50_000 // part),
        "100 B a row": heavy(100, 1_000_000 // part),
        "10 kB a row": heavy(10_000, 50_000 // part),
    }
    competitors = {
        OURS: ours.measure,
        LIBRDKAFKA: librdkafka.measure,
        NAIVE: naive.measure,
        DEBEZIUM: debezium.measure,
    }
    return [
        _case(workload, competitor, measure, table)
        for workload, table in tables.items()
        for competitor, measure in competitors.items()
    ]


def growth(scale: Scale) -> list[Case]:
    """Rate and memory as the table grows."""
    tables = [events(scale.rows * times, f"events_{times}") for times in ((1, 5) if scale.quick else (1, 5, 10))]
    return [_case(f"{table.rows:,} rows", OURS, ours.measure, table) for table in tables]


def depth(scale: Scale) -> list[Case]:
    """Each traversal, the rate by how deep in the table it is (`tenths_s` of a sample)."""
    return [
        _case(traversal, OURS, ours.measure, events(scale.rows), traversal=traversal)
        for traversal in ("ID_RANGE", "OFFSET")
    ]


def splits(scale: Scale) -> list[Case]:
    """One table read by 1 to 64 splits at a time."""
    return [
        _case(f"{count} splits", OURS, ours.measure, events(scale.rows), max_parallel=count)
        for count in ((1, 4, 16) if scale.quick else (1, 2, 4, 8, 16, 32, 64))
    ]


def streams(scale: Scale) -> list[Case]:
    """1 to 200 streams in one process, all of them together reading about as many rows."""
    cases = []
    for count in (1, 200) if scale.quick else (1, 10, 50, 200):
        tables = [events(max(1000, scale.rows // count), f"small_{count}_{n}") for n in range(count)]
        measure = partial(ours.measure_many, tables=tables)
        cases.append(Case(f"{count} streams", OURS, measure, tables))
    return cases


SUITES: dict[str, Callable[[Scale], list[Case]]] = {
    "peers": peers,
    "databases": databases,
    "shapes": shapes,
    "growth": growth,
    "depth": depth,
    "splits": splits,
    "streams": streams,
}
