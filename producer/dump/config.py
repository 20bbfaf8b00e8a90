"""The options of a dump: what is read, how, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from producer.config import StreamConfig
from producer.errors import ConfigError

E = TypeVar("E", bound=StrEnum)


class DumpFormat(StrEnum):
    """The files' format."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    JSON = "json"
    AVRO = "avro"


class DumpStrategy(StrEnum):
    """How the table is walked: OFFSET/LIMIT in a fixed order, or ranges of a numeric ``id`` in parallel."""

    OFFSET = "offset"
    ID_RANGE = "id_range"


@dataclass(frozen=True, slots=True)
class DumpConfig:
    """One table's dump. Construction checks the values (ConfigError names the option).

    `resume_offset` (0 or None: not used) starts from that row, or with ID_RANGE after that id, whatever the state says.
    Rows before it that the files have stay in them, later ones are cut off and written anew. It is applied once; from
    then on the state counts again. `indent` is how many spaces a level of a JSON array has; None: a row a line.
    `columns` are the names to read, where not all. `chat` is what a source of chats reads instead of a table, whose
    name then only names the files.
    """

    table: str = ""
    output_dir: Path = Path("dumps")
    chunk_size: int = 5000  # rows a request
    strategy: DumpStrategy | str = DumpStrategy.OFFSET
    format: DumpFormat | str = DumpFormat.JSONL
    compress: bool = False  # gzip; inside an Avro file deflate; Parquet is always compressed
    resume: bool = True
    resume_offset: int | None = 0
    order_by: str | Sequence[str] | None = "id ASC"
    where_clause: Any = None  # a Q, JSONSQL, or for SQL sources a condition with :names
    batch_timeout: float = 30.0  # seconds a request
    max_retries: int = 3
    retry_backoff: float = 1.5  # retry n waits retry_backoff ** n seconds
    max_parallel: int = 3  # ranges read in parallel (ID_RANGE)
    indent: int | None = None
    params: Mapping[str, Any] | None = None  # the values of the condition's :names
    columns: Sequence[str] | None = None
    chat: str | int | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "output_dir", Path(self.output_dir))
        set_(self, "format", _choice("format", DumpFormat, self.format))
        set_(self, "strategy", _choice("strategy", DumpStrategy, self.strategy))
        set_(self, "resume_offset", 0 if self.resume_offset is None else self.resume_offset)
        if self.indent is not None and (type(self.indent) is not int or not 0 <= self.indent <= 16):
            raise ConfigError(f"indent must be None or a number from 0 to 16, not {self.indent!r}")
        bounds: dict[str, tuple[float, float]] = {
            "chunk_size": (1, 1_000_000),
            "resume_offset": (0, 2**63 - 1),
            "batch_timeout": (0.001, 86_400),
            "max_retries": (0, 1000),
            "retry_backoff": (0, 1000),
            "max_parallel": (1, 64),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")

    @property
    def start_row(self) -> int:
        """`resume_offset` as a number, 0 where it is not used."""
        return self.resume_offset or 0

    @property
    def name(self) -> str:
        """The table's name as it stands in file names: no quotes, no path separators."""
        name = "".join("_" if c in "/\\:" or not c.isprintable() else c for c in self.table.replace('"', ""))
        return name.lstrip(".") or "_"

    @property
    def state_path(self) -> Path:
        return self.output_dir / f".{self.name}.state.json"

    def stream(self) -> StreamConfig:
        """The same as a stream of the engine."""
        if not self.table:
            raise ConfigError("table is not given", hint='DumpConfig(table="...")')
        order = (self.order_by,) if isinstance(self.order_by, str) else tuple(self.order_by or ())
        terms = tuple(term.strip() for text in order for term in text.split(",") if term.strip())
        by_range = self.strategy is DumpStrategy.ID_RANGE
        if terms in (("id ASC",), ("id",)):
            terms = ()  # the table's own key, which a source knows better
        return StreamConfig(
            name=self.name,
            source="dump",
            table=self.table if self.chat is None else None,
            chat=self.chat,
            topic="dump",
            traversal="ID_RANGE" if by_range else "OFFSET",
            where=self.where_clause,
            params=dict(self.params or {}),
            order_by=terms or None,
            columns=tuple(self.columns) if self.columns else None,
            page_size=self.chunk_size,
            max_parallel=self.max_parallel if by_range else 1,
        )


def _choice(option: str, kind: type[E], value: object) -> E:
    try:
        return kind(str(value).lower())
    except ValueError:
        raise ConfigError(f"{option} {value!r} is not one of {', '.join(kind)}") from None
