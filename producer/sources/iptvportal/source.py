"""Owns the IPTVPortal source: tables of the API as pages, by OFFSET or by id ranges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field, SecretStr

from producer.config import Model, StreamConfig
from producer.errors import ConfigError, SchemaIncompatibleError
from producer.identity import Identity
from producer.model import (
    Between,
    Checkpoint,
    Dataset,
    KeyPosition,
    OffsetPosition,
    Page,
    Position,
    RejectedRow,
    Split,
)
from producer.sources.iptvportal.client import AsyncIPTVPortalClient, Call
from producer.sources.iptvportal.columns import (
    ID,
    Column,
    column,
    inferred,
    read_schema_file,
    to_arrow,
    to_arrow_without_bad,
    transposed,
)
from producer.sources.iptvportal.query import all_of, columns_of, nearest, where_json

Json = Any
STAR = "field_"  # names of columns that nobody has named


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

    @classmethod
    def of_client(cls, client: AsyncIPTVPortalClient) -> Self:
        """A source over a client that somebody else opens and closes."""
        source = cls.__new__(cls)
        source._client, source._owns_client = client, False
        source._tables = read_schema_file(client.schema_file) if client.schema_file else {}
        return source

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
        key = tuple(stream.key or (ID,))
        columns, width = await self._columns(stream, table, where)
        hidden = frozenset(key) - {c.name for c in columns}
        known = {c.name: c for c in self._tables.get(table, ())}
        columns += tuple(known.get(name) or column(name, "integer") for name in key if name in hidden)
        order = _order(stream, key)
        if stream.traversal == "ID_RANGE":
            _check_ranges(stream, order, next((c.type for c in columns if c.name == ID), None))
        names = {c.name for c in columns}
        count = await self._count(table, where)
        return Dataset(
            name=table,
            schema=pa.schema([c.field for c in columns]),
            key=key,
            order=tuple(name for name, _ in order if name in names),
            identity={
                "source": "iptvportal",
                "host": self._client.host,
                "table": table,
                "columns": [[c.name, c.type] for c in columns],
                "star_width": width,
                "where": where,
                "order": [list(o) for o in order],
            },
            hidden=hidden,
            rows_estimate=count,
            origin=Identity({"source": "iptvportal", "domain": self._client.host, "table": table}),
        )

    async def plan(self, stream: StreamConfig, dataset: Dataset) -> Sequence[Split]:
        """OFFSET: one split as long as the table is now. ID_RANGE: ranges of equal row counts, their bounds asked
        for by rank (one batch), so that sparse or skewed ids do not matter."""
        rows = dataset.rows_estimate or 0
        tail = stream.mode != "snapshot"
        if stream.traversal == "OFFSET":
            return [Split("0", None, None if tail else OffsetPosition(rows))]
        base = {"from": dataset.name, **_where(dataset.identity["where"])}
        ranks = sorted({rows * i // stream.max_parallel for i in range(1, stream.max_parallel)} - {0})
        calls: list[Call] = [("select", {**base, "data": [_function("max", ID)]})]
        calls += [("select", {**base, "data": [ID], "order_by": ID, "limit": 1, "offset": r - 1}) for r in ranks]
        highest, *inner = await self._client.batch(calls)
        if highest == [[None]] and not tail:
            return [Split("0", None, KeyPosition((0,)))]  # an empty table: nothing is there now
        last = None if tail else _number(dataset.name, highest)
        bounds = sorted({_number(dataset.name, rows) for rows in inner if rows} - {last})
        lowers: list[int | None] = [None, *bounds]
        uppers: list[int | None] = [*bounds, last]
        return [Split(str(n), _key(a), _key(b)) for n, (a, b) in enumerate(zip(lowers, uppers, strict=True))]

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> IptvPortalReader:
        return IptvPortalReader(self._client, stream, dataset, split)

    async def divide(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> Position | None:
        """The id in the middle of what is left, by rank; None for OFFSET and for less than four pages."""
        left = None if stream.traversal == "OFFSET" else await self.remaining(stream, dataset, checkpoint)
        if left is None or left < 4 * stream.page_size:
            return None
        ranked = {"order_by": ID, "limit": 1, "offset": left // 2 - 1}
        rows = await self._client.select(data=[ID], from_=dataset.name, **ranked, **_where(_left(dataset, checkpoint)))
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
            rows = await self._client.select(**base, **_where(dataset.identity["where"]))
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
        rows = await self._client.select(data=[_function("count", "*")], from_=table, **_where(where))
        return _number(table, rows)

    def _check_where(self, table: str, where: Json) -> None:
        known = [c.name for c in self._tables.get(table, ())]
        for name in columns_of(where) if known else ():
            if name not in known:
                raise ConfigError(f"where: table {table} has no column {name!r}", hint=nearest(name, known))

    async def _columns(self, stream: StreamConfig, table: str, where: Json) -> tuple[tuple[Column, ...], int | None]:
        """The columns to ask for; and, where nobody has named them, how many values ``*`` gives."""
        known = {c.name: c for c in self._tables.get(table, ())}
        for name in (*(stream.columns or ()), *stream.exclude) if known else ():
            if name not in known:
                raise ConfigError(f"stream {stream.name}: {table} has no column {name!r}", hint=nearest(name, known))
        names = tuple(n for n in stream.columns or known if n not in stream.exclude)
        if known:
            return tuple(known[n] for n in names), None
        data: Json = list(names) or [ID, "*"]
        rows = await self._client.select(
            data=data,
            from_=table,
            order_by=(stream.key or (ID,))[0],
            limit=min(stream.page_size, 5000),
            **_where(where),
        )
        if not rows:
            raise SchemaIncompatibleError(
                f"iptvportal: {table} has no rows to infer its columns from", hint="give them in a schema file"
            )
        width = len(names) or len(rows[0])
        values = transposed(table, rows, width)
        if names:
            return tuple(inferred(n, v) for n, v in zip(names, values, strict=True)), None
        stars = [(f"{STAR}{i}", v) for i, v in enumerate(values[1:])]
        return tuple(inferred(n, v) for n, v in stars if n not in stream.exclude), width - 1


class IptvPortalReader:
    """Pages of one split, one request each. Rows are decoded and put into Arrow in a worker thread."""

    def __init__(self, client: AsyncIPTVPortalClient, stream: StreamConfig, dataset: Dataset, split: Split) -> None:
        self._client = client
        self._split = split
        self._by_offset = stream.traversal == "OFFSET"
        self._salvages = stream.on_bad_record == "dead_letter"
        self._table = dataset.name
        self._where = dataset.identity["where"]
        self._order_by = [_order_json(name, way) for name, way in dataset.identity["order"]]
        self._columns = tuple(column(name, kind) for name, kind in dataset.identity["columns"])
        names = [c.name for c in self._columns]
        star_width = dataset.identity["star_width"]
        if star_width is None:
            self._data, self._width, self._places = names, len(names), list(range(len(names)))
        else:
            # The id stands first and "*" after it, so that its place does not depend on the table's width.
            self._data, self._width = [ID, "*"], star_width + 1
            self._places = [0 if n == ID else 1 + int(n.removeprefix(STAR)) for n in names]

    async def fetch(self, position: Position | None, limit: int) -> Page:
        position = position or self._split.lower
        upper = self._split.upper
        params: dict[str, Json] = {"data": self._data, "from": self._table, "order_by": self._order_by}
        if self._by_offset:
            read = position.rows if isinstance(position, OffsetPosition) else 0
            if isinstance(upper, OffsetPosition):
                limit = min(limit, upper.rows - read)
            params |= {"offset": read, **_where(self._where)}
        else:
            params |= _where(all_of(self._where, *_range(position, upper)))
        calls: list[Call] = [("select", {**params, "limit": max(limit, 0)})]
        raw = await self._client.fetch_raw(calls)
        return await asyncio.to_thread(self._page, raw, calls, position, time.time())

    async def close(self) -> None:
        """Nothing: the connections are the client's."""

    def _page(
        self, raw: tuple[Sequence[int], bytes], calls: Sequence[Call], position: Position | None, answered: float
    ) -> Page:
        (rows,) = self._client.results(raw, calls)
        if not isinstance(rows, list):
            raise SchemaIncompatibleError(f"iptvportal: {self._table}: select answered with a {type(rows).__name__}")
        values = transposed(self._table, rows, self._width)
        picked = [values[i] for i in self._places]
        rejected: tuple[RejectedRow, ...] = ()
        if self._salvages:
            batch, rejected = to_arrow_without_bad(self._table, self._columns, picked)
        else:
            batch = to_arrow(self._table, self._columns, picked)
        upper = self._split.upper
        # The API may answer with fewer rows than the limit: only an empty page, or the split's last row, is the end.
        if not rows:
            return Page(batch, position, last=True, source_time=answered)
        after: Position
        if self._by_offset:
            after = OffsetPosition((position.rows if isinstance(position, OffsetPosition) else 0) + len(rows))
            last = isinstance(upper, OffsetPosition) and after.rows >= upper.rows
        else:
            place = [c.name for c in self._columns].index(ID)
            ids = to_arrow(self._table, [self._columns[place]], [picked[place]])  # those of rejected rows too
            after = KeyPosition((self._last_id(ids, position),))
            last = after == upper
        return Page(batch, after, last=last, source_time=answered, rejected=rejected)

    def _last_id(self, batch: pa.RecordBatch, position: Position | None) -> int:
        """The page's highest id, once it is sure that the page is in order and lies after `position`."""
        ids = batch.column(batch.schema.get_field_index(ID))
        first = position.values[0] if isinstance(position, KeyPosition) else None
        numbers = ids.to_numpy()
        if (numbers[1:] > numbers[:-1]).all() and (first is None or numbers[0] > first):
            return int(numbers[-1])
        raise SchemaIncompatibleError(
            f"iptvportal: {self._table}: the answer is not in the order of id, or repeats one",
            hint="is id the table's primary key? traversal: OFFSET reads any table",
        )


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


def _order_json(name: str, way: str) -> Json:
    return name if way == "ASC" else [name, way]


def _left(dataset: Dataset, checkpoint: Checkpoint) -> Json:
    """The condition of a split's rows after its position."""
    position = checkpoint.position or checkpoint.split.lower
    return all_of(dataset.identity["where"], *_range(position, checkpoint.split.upper))


def _number(table: str, rows: Json) -> int:
    """The one whole number of an answer."""
    match rows:
        case [[int(number)]]:
            return number
    raise SchemaIncompatibleError(f"iptvportal: {table}: the answer is not one whole number", hint="is id numeric?")


def _range(position: Position | None, upper: Position | None) -> list[Json]:
    conditions = [("gt", position), ("lte", upper)]
    return [{op: [ID, p.values[0]]} for op, p in conditions if isinstance(p, KeyPosition)]


def _key(value: int | None) -> KeyPosition | None:
    return None if value is None else KeyPosition((value,))


def _where(where: Json) -> dict[str, Json]:
    return {} if where is None else {"where": where}


def _function(name: str, argument: str) -> Json:
    return {"function": name, "args": [argument], "as": name}
