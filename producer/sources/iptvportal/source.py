"""The IPTVPortal source: tables of the API as pages, by OFFSET or by id ranges."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field, SecretStr

from producer.config import Model, StreamConfig
from producer.errors import (
    AuthenticationError,
    ConfigError,
    PermanentError,
    SchemaIncompatibleError,
)
from producer.identity import Identity
from producer.model import (
    Between,
    Checkpoint,
    Dataset,
    KeyPosition,
    OffsetPosition,
    Position,
    Split,
)
from producer.sources.iptvportal.client import AsyncIPTVPortalClient, Call, Row
from producer.sources.iptvportal.columns import (
    ID,
    Column,
    as_written,
    column,
    column_of,
    inferred,
    read_schema_file,
    transposed,
    widened,
)
from producer.sources.iptvportal.query import all_of, columns_of, nearest, where_json
from producer.sources.iptvportal.reader import (
    STAR,
    Inferred,
    IptvPortalReader,
    order_json,
    range_conditions,
    where_param,
)

Json = Any
log = logging.getLogger("producer.iptvportal")
#: Of ranges of equal width, so that those with many rows keep no reader waiting.
RANGES_A_READER = 4


class IptvPortalConfig(Model):
    """A source of type ``iptvportal``. `url` names a host in the place of the operator's own.

    `columns` gives names and types of a table's columns in the order of its rows, `schema_file` those of many.
    """

    type: Literal["iptvportal"] = "iptvportal"
    domain: str | None = Field(default=None, description="the operator's name; or url")
    url: str | None = Field(default=None, description="of a host, in the place of domain")
    username: str = Field(description="of the API")
    password: SecretStr = Field(description="${ENV} or ${file:PATH}")
    timeout_s: float = Field(default=30.0, gt=0, description="of one request")
    ssl_cafile: str | None = Field(
        default=None, description="certificates of the authorities that are trusted, PEM; default: the system's"
    )
    schema_file: str | None = Field(
        default=None, description="YAML: tables -> NAME -> columns: [{position, name, type}]"
    )
    columns: Mapping[str, Mapping[str, str]] = Field(default_factory=dict, description="table -> column -> type")


class IptvPortalSource:
    """Tables of the IPTVPortal API. Sessions are renewed by the client; retries are the engine's."""

    def __init__(self, config: IptvPortalConfig) -> None:
        client = AsyncIPTVPortalClient(
            domain=config.domain,
            url=config.url,
            username=config.username,
            password=config.password.get_secret_value(),
            timeout_s=config.timeout_s,
            ssl_cafile=config.ssl_cafile,
        )
        self._client = client
        self._owns_client = True
        self._tables = read_schema_file(config.schema_file) if config.schema_file else {}
        self._tables |= {t: tuple(column(n, k) for n, k in names.items()) for t, names in config.columns.items()}
        self._files: Literal["no", "typed", "written"] = "no"
        self._inferred = Inferred()

    @classmethod
    def of_client(cls, client: AsyncIPTVPortalClient) -> Self:
        """A source over a client that somebody else opens and closes."""
        source = cls.__new__(cls)
        source._client, source._owns_client = client, False
        source._tables = read_schema_file(client.schema_file) if client.schema_file else {}
        source._files, source._inferred = "no", Inferred()
        return source

    def for_files(self, table: str, *, typed: bool, types: Mapping[str, str]) -> Self:
        """The same tables for a dump: nothing is counted for ID_RANGE, and a table without rows has no columns yet.

        Without `typed`, columns that nobody has named keep what the API has written. `types` are those of `table` that
        an earlier run has inferred. Closing the new source leaves the client open.
        """
        source = copy.copy(self)
        source._files, source._owns_client = "typed" if typed else "written", False
        source._inferred = Inferred({(table, name): column(name, kind) for name, kind in types.items()})
        return source

    def inferred_types(self, dataset: Dataset) -> Mapping[str, str]:
        """The types of those columns that nobody has described."""
        inferred_names = {name for name, kind in dataset.identity["columns"] if not kind}
        return {field.name: column_of(field).type for field in dataset.schema if field.name in inferred_names}

    async def start(self) -> None:
        await self._client.start()

    async def close(self) -> None:
        if self._owns_client:
            await self._client.close()

    async def describe(self, stream: StreamConfig) -> Dataset:
        if not stream.table:
            raise ConfigError(f"stream {stream.name}: table is not given")
        if stream.mode == "timestamp":
            raise ConfigError(f"stream {stream.name}: mode timestamp is not for iptvportal", hint="snapshot or tail")
        table, where = stream.table, where_json(stream.where)
        self._check_where(table, where)
        shape = await self._shape(stream, table, where)
        columns, key = shape.columns, shape.key
        hidden = frozenset(key) - {c.name for c in columns}
        known = {c.name: c for c in self._tables.get(table, ())}
        columns += tuple(shape.id or known.get(name) or column(name, "integer") for name in key if name in hidden)
        if stream.traversal == "ID_RANGE":
            _check_ranges(stream, shape.order, next((c.type for c in columns if c.name == ID), None))
        names = {c.name for c in columns}
        counted = stream.traversal == "OFFSET" or self._files == "no"
        return Dataset(
            name=table,
            schema=pa.schema([c.field for c in columns]),
            key=key,
            order=tuple(name for name, _ in shape.order if name in names),
            identity={
                "source": "iptvportal",
                "host": self._client.host,
                "table": table,
                # An inferred type may become wider while the table is read: it is no part of what is asked for.
                "columns": [[c.name, "" if shape.inferred else c.type] for c in columns],
                "star_width": shape.star,
                "where": where,
                "order": [list(o) for o in shape.order],
            },
            hidden=hidden,
            rows_estimate=await self._count(table, where) if counted else None,
            origin=Identity({"source": "iptvportal", "domain": self._client.host, "table": table}),
        )

    async def plan(self, stream: StreamConfig, dataset: Dataset) -> Sequence[Split]:
        """OFFSET: one split as long as the table is now. ID_RANGE: ranges of equal row counts, their bounds asked
        for by rank (one batch), so that sparse or skewed ids do not matter; for files, where nothing is counted,
        ranges of equal width between the lowest and the highest id, several a reader, so that readers share skewed
        ids."""
        rows = dataset.rows_estimate or 0
        tail = stream.mode != "snapshot"
        if stream.traversal == "OFFSET":
            return [Split("0", None, None if tail else OffsetPosition(rows))]
        base = {"from": dataset.name, **where_param(dataset.identity["where"])}
        if self._files != "no":
            return _equal_widths(stream, await self._edges(dataset.name, base))
        ranks = sorted({rows * i // stream.max_parallel for i in range(1, stream.max_parallel)} - {0})
        calls: list[Call] = [("select", {**base, "data": [_function("max", ID)]})]
        calls += [("select", {**base, "data": [ID], "order_by": ID, "limit": 1, "offset": r - 1}) for r in ranks]
        highest, *inner = await self._client.batch(calls)
        if highest == [[None]] and not tail:
            return [Split("0", None, KeyPosition((0,)))]  # an empty table: nothing is there now
        last = None if tail else _number(dataset.name, highest)
        bounds = sorted({_number(dataset.name, rows) for rows in inner if rows} - {last})
        return _splits([*bounds, last])

    async def _edges(self, table: str, base: Mapping[str, Json]) -> tuple[int, int] | None:
        """The lowest and the highest id; None of a table without rows."""
        data = [_function("min", ID), _function("max", ID)]
        match await self._client.call("select", {**base, "data": data}):
            case [[None, None]]:
                return None
            case [[int(lowest), int(highest)]]:
                return lowest, highest
        raise SchemaIncompatibleError(f"iptvportal: {table}: the ids are not whole numbers", hint="use OFFSET")

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> IptvPortalReader:
        return IptvPortalReader(self._client, stream, dataset, split, self._inferred)

    async def divide(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> Position | None:
        """The id in the middle of what is left, by rank; None for OFFSET and for less than four pages."""
        left = None if stream.traversal == "OFFSET" else await self.remaining(stream, dataset, checkpoint)
        if left is None or left < 4 * stream.page_size:
            return None
        ranked = {"order_by": ID, "limit": 1, "offset": left // 2 - 1}
        rows = await self._client.select(
            data=[ID], from_=dataset.name, **ranked, **where_param(_left(dataset, checkpoint))
        )
        return _key(_number(dataset.name, rows)) if rows else None

    async def replay(self, stream: StreamConfig, dataset: Dataset, split_id: str, wanted: Between) -> Split:
        what = f"stream {stream.name!r}, replay"
        if stream.traversal == "OFFSET" or wanted.column not in ("", ID):
            raise ConfigError(f"{what}: only a range of {ID} can be read again", hint="and with traversal ID_RANGE")
        try:
            first, last = (None if end is None else int(str(end)) for end in (wanted.first, wanted.last))
        except ValueError:
            raise ConfigError(f"{what}: {wanted.first!r} to {wanted.last!r} is not a range of {ID}") from None
        if last is None:
            base = {"data": [_function("max", ID)], "from_": dataset.name}
            rows = await self._client.select(**base, **where_param(dataset.identity["where"]))
            last = 0 if rows == [[None]] else _number(dataset.name, rows)
        lower = None if first is None else first - 1
        return Split(split_id, _key(lower), _key(last if lower is None else max(last, lower)))

    async def remaining(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> int | None:
        if checkpoint.done:
            return 0
        upper, position = checkpoint.split.upper, checkpoint.position or checkpoint.split.lower
        read = position.rows if isinstance(position, OffsetPosition) else 0
        if isinstance(upper, OffsetPosition):
            return max(0, upper.rows - read)
        return max(0, await self._count(dataset.name, _left(dataset, checkpoint)) - read)

    async def _count(self, table: str, where: Json) -> int:
        rows = await self._client.select(data=[_function("count", "*")], from_=table, **where_param(where))
        return _number(table, rows)

    def _check_where(self, table: str, where: Json) -> None:
        known = [c.name for c in self._tables.get(table, ())]
        for name in columns_of(where) if known else ():
            if name not in known:
                raise ConfigError(f"where: table {table} has no column {name!r}", hint=nearest(name, known))

    async def _shape(self, stream: StreamConfig, table: str, where: Json) -> _Shape:
        """The columns to ask for, and in what order; from the table's first page where nobody has named them."""
        known = {c.name: c for c in self._tables.get(table, ())}
        for name in (*(stream.columns or ()), *stream.exclude) if known else ():
            if name not in known:
                raise ConfigError(f"stream {stream.name}: {table} has no column {name!r}", hint=nearest(name, known))
        key = tuple(stream.key or (ID,))
        names = tuple(n for n in stream.columns or known if n not in stream.exclude)
        if known:
            if self._may_lack_id(stream) and ID not in known:
                every = [(c.name, "ASC") for c in known.values() if c.type != "json"]
                return _Shape(tuple(known[n] for n in names), (), _order(stream, ()) or every)
            return _Shape(tuple(known[n] for n in names), key, _order(stream, key))
        try:
            rows = await self._first_page(stream, table, where, _data(names, key), _order(stream, key))
        except PermanentError as error:
            if isinstance(error, AuthenticationError) or not self._may_lack_id(stream):
                raise
            key = ()
            try:
                rows = await self._first_page(stream, table, where, _data(names, key), _order(stream, key))
            except PermanentError:
                raise error from None
            log.warning(
                "%s has no id: its rows are read in the order that the server gives them; "
                "name its columns in a schema file for a fixed order",
                table,
            )
        return self._inferred_shape(stream, table, names, key, rows)

    def _may_lack_id(self, stream: StreamConfig) -> bool:
        return stream.traversal == "OFFSET" and stream.key is None

    async def _first_page(
        self, stream: StreamConfig, table: str, where: Json, data: list[Json], order: list[tuple[str, str]]
    ) -> list[Row]:
        """The rows with which reading begins; kept for the reader, so that they are not asked for twice."""
        ordered = {"order_by": [order_json(*item) for item in order]} if order else {}
        asked = {"data": data, "from": table, **ordered, **where_param(where), "limit": stream.page_size}
        rows = await self._client.select(**{"from_" if k == "from" else k: v for k, v in asked.items()})
        self._inferred.first_page = (asked, rows)
        return rows

    def _inferred_shape(
        self, stream: StreamConfig, table: str, names: tuple[str, ...], key: tuple[str, ...], rows: list[Row]
    ) -> _Shape:
        order = _order(stream, key)
        if not rows and self._files == "no":
            raise SchemaIncompatibleError(
                f"iptvportal: {table} has no rows to infer its columns from", hint="give them in a schema file"
            )
        if names:
            placed = [*names, *(name for name in key if name not in names)]
            values = dict(zip(placed, transposed(table, rows, len(placed)), strict=True))
            columns = tuple(self._column(table, name, values[name]) for name in names)
            hidden_id = inferred(ID, values[ID]) if rows and ID in values and ID not in names else None
            return _Shape(columns, key, order, None, hidden_id, inferred=True)
        leading = len(key)
        stars = transposed(table, rows, len(rows[0]) if rows else leading)
        columns = tuple(
            self._column(table, name, values)
            for place, values in enumerate(stars[leading:])
            if (name := f"{STAR}{place}") not in stream.exclude
        )
        hidden_id = inferred(ID, stars[0]) if rows and key == (ID,) else None
        return _Shape(columns, key, order, len(stars) - leading, hidden_id, inferred=True)

    def _column(self, table: str, name: str, values: Sequence[Json]) -> Column:
        if self._files == "written" and name != ID:
            return as_written(name)
        before = self._inferred.columns.get((table, name))
        return inferred(name, values) if before is None else widened(before, values)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The columns of the value, the key's and the order's names; ``star``: how many values ``*`` gives, where nobody
    has named the columns; ``id``: the inferred id, where it is no column of the value."""

    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: list[tuple[str, str]]
    star: int | None = None
    id: Column | None = None
    inferred: bool = False


def _check_ranges(stream: StreamConfig, order: Sequence[tuple[str, str]], id_type: str | None) -> None:
    if list(order) != [(ID, "ASC")]:
        raise ConfigError(
            f"stream {stream.name}: ID_RANGE reads in the order of id, not by "
            + ", ".join(f"{name} {way}" for name, way in order),
            hint="leave order_by and key out, or use OFFSET",
        )
    if id_type != "integer":
        raise ConfigError(
            f"stream {stream.name}: ID_RANGE needs a numeric id, and {stream.table}.id is of type {id_type}",
            hint="OFFSET reads any table",
        )


def _order(stream: StreamConfig, key: tuple[str, ...]) -> list[tuple[str, str]]:
    """The traversal's total order: what is configured (``"last_seen DESC"``), then the key's columns."""
    order: list[tuple[str, str]] = []
    for text in stream.order_by or ():
        name, _, way = text.strip().partition(" ")
        way = way.strip().upper() or "ASC"
        if not name or way not in ("ASC", "DESC"):
            raise ConfigError(f"stream {stream.name}: order_by {text!r} is not a column, or a column and ASC or DESC")
        order.append((name, way))
    return order + [(name, "ASC") for name in key if name not in [n for n, _ in order]]


def _data(names: Sequence[str], key: Sequence[str]) -> list[Json]:
    """What to ask for: the columns and those of the key, or all columns after the key's."""
    return [*names, *(name for name in key if name not in names)] if names else [*key, "*"]


def _equal_widths(stream: StreamConfig, edges: tuple[int, int] | None) -> list[Split]:
    """At most four ranges a reader, and none narrower than a page."""
    if edges is None:
        return [Split("0", None, KeyPosition((0,)))]  # an empty table: nothing is there now
    lowest, highest = edges
    width = highest - lowest + 1
    pieces = max(1, min(RANGES_A_READER * stream.max_parallel, width // stream.page_size))
    return _splits([lowest + width * n // pieces - 1 for n in range(1, pieces + 1)], lowest - 1)


def _splits(uppers: Sequence[int | None], lower: int | None = None) -> list[Split]:
    """Ranges that follow one another and end with these ids; the first begins after the id `lower`."""
    ends = zip([lower, *uppers[:-1]], uppers, strict=True)
    return [Split(str(n), _key(lower), _key(upper)) for n, (lower, upper) in enumerate(ends)]


def _left(dataset: Dataset, checkpoint: Checkpoint) -> Json:
    """The condition of a split's rows after its position."""
    position = checkpoint.position or checkpoint.split.lower
    return all_of(dataset.identity["where"], *range_conditions(position, checkpoint.split.upper))


def _number(table: str, rows: Json) -> int:
    """The one whole number of an answer."""
    match rows:
        case [[int(number)]]:
            return number
    raise SchemaIncompatibleError(f"iptvportal: {table}: the answer is not one whole number", hint="is id numeric?")


def _key(value: int | None) -> KeyPosition | None:
    return None if value is None else KeyPosition((value,))


def _function(name: str, argument: str) -> Json:
    return {"function": name, "args": [argument], "as": name}
