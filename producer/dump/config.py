"""Owns the options of a dump: what is read, how, and where it goes."""

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
    """How the table is walked: OFFSET/LIMIT in a fixed order, or ranges of a numeric ``id`` side by side."""

    OFFSET = "offset"
    ID_RANGE = "id_range"


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpConfig:
    """One table's dump. Construction checks the values (ConfigError names the option).

    `resume_offset` (0: none) begins after that many rows, or with ID_RANGE after that id, whatever the state says;
    it is applied once, then the state counts again. `columns` are the names to read, where not all. `chat` is what a
    source of chats reads in the place of a table, whose name then only names the files.
    """

    table: str = ""
    chat: str | int | None = None
    output_dir: Path = Path("dumps")
    chunk_size: int = 5000  # rows a request
    strategy: DumpStrategy | str = DumpStrategy.OFFSET
    format: DumpFormat | str = DumpFormat.JSONL
    compress: bool = False  # gzip; inside an Avro file deflate; Parquet is always compressed
    resume: bool = True
    resume_offset: int = 0
    order_by: str | Sequence[str] | None = "id ASC"
    where_clause: Any = None  # a Q, JSONSQL, or for SQL sources a condition with :names
    params: Mapping[str, Any] | None = None  # the values of those names
    columns: Sequence[str] | None = None
    batch_timeout: float = 30.0  # seconds a request
    max_retries: int = 3
    retry_backoff: float = 1.5  # retry n waits retry_backoff ** n seconds
    max_parallel: int = 3  # ranges side by side (ID_RANGE)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "output_dir", Path(self.output_dir))
        set_(self, "format", _choice("format", DumpFormat, self.format))
        set_(self, "strategy", _choice("strategy", DumpStrategy, self.strategy))
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
