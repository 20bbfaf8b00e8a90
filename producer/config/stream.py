"""Owns the configuration of one stream, and the rules between its keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from producer.config.base import ConsistentModel, Model
from producer.config.text import KeyPath
from producer.config.transforms import TransformConfig
from producer.config.zone import ZoneName
from producer.model import Mode, Traversal

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


class DeletesConfig(Model):
    every_s: float = Field(
        default=300.0, gt=0, description="seconds between two comparisons of the topic's keys with the source's"
    )


class StreamConfig(ConsistentModel):
    """One table (or chat) going to one topic."""

    name: str = Field(default="", description="default: the table's or chat's name")
    source: str = Field(description="one of sources")
    table: str | None = Field(default=None, description='parts quoted as in SQL: \'"Odd Names"."t-1"\'')
    chat: str | int | None = Field(default=None, description="of a Telegram source: @name, link, or id")
    topic: str = Field(default="", description="default: <source>.<name>")
    traversal: Traversal = Field(
        default="ID_RANGE",
        description="ID_RANGE: ranges of the key, side by side; OFFSET: by counting rows, where nothing moves",
    )
    mode: Mode = Field(
        default="snapshot",
        description="snapshot: what is there; tail: what comes; snapshot_then_tail: both; timestamp: what changes too",
    )
    start: Literal["beginning", "latest"] = Field(
        default="beginning", description="where a tail begins: latest is after the greatest key that there is"
    )
    notify: str | None = Field(
        default=None, min_length=1, max_length=63, description="PostgreSQL: a channel whose NOTIFY tells of new rows"
    )
    late_commit_s: float = Field(
        default=3600.0,
        ge=0,
        description="how long after a higher key was read a row may still commit; a missing id is asked for so long. "
        "0: such rows are lost",
    )
    delay_s: float = Field(
        default=5.0, ge=0, description="mode timestamp: rows are read when they are so old; longer than transactions"
    )
    zone: ZoneName | None = Field(
        default=None,
        description="of a followed time without a zone: the zone it is written in, a name or an offset in quotes; "
        "default: the database's own",
    )
    key: tuple[str, ...] | None = Field(default=None, min_length=1, description="default: the primary key")
    columns: tuple[str, ...] | None = Field(default=None, min_length=1, description="only these; default: all")
    exclude: tuple[str, ...] = Field(default=(), description="all but these")
    where: Any = Field(default=None, description="a condition; its bound parameters stand in params")
    params: Mapping[str, Any] = Field(default_factory=dict, description="values of the :NAMES in where")
    order_by: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="the traversal's order; default: the key, which is appended where the order is not total",
    )
    page_size: int = Field(default=20_000, ge=1, le=1_000_000, description="rows a fetch")
    max_parallel: int = Field(default=3, ge=1, le=64, description="splits read side by side")
    partitions: int | None = Field(
        default=None, ge=1, description="of the topic, where it is made; default: the broker's"
    )
    replication_factor: int | None = Field(
        default=None, ge=1, description="of the topic, where it is made; default: the broker's"
    )
    topic_config: Mapping[str, str] = Field(
        default_factory=dict, description="settings of the topic, where it is made, such as cleanup.policy"
    )
    schema_file: str | None = Field(default=None, alias="schema", description="an .avsc file")
    decimal: str | None = Field(default=None, description="precision,scale of a numeric that has none, or 'string'")
    on_bad_record: Literal["fail", "dead_letter"] = Field(
        default="fail",
        description="fail: the stream stops before it; dead_letter: it goes to <topic>.dlq, and the stream goes on",
    )
    on_replaced: Literal["fail", "restart", "continue"] = Field(
        default="fail",
        description="what is done when another table has the name: fail: the stream stops; restart: all rows are read "
        "again; continue: only rows after the position are read",
    )
    transforms: tuple[TransformConfig, ...] = Field(default=(), description="done to each row, in this order")
    poll_interval_s: float = Field(
        default=5.0, gt=0, description="how often new rows are looked for, after all have been read"
    )
    max_rows_per_s: float | None = Field(default=None, gt=0, description="the rate of reading, at most")
    deletes: DeletesConfig | None = Field(default=None, description="sends tombstones for rows that are gone")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """The name is the table's or chat's, the topic <source>.<name>."""
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        if not filled.get("name"):
            filled["name"] = default_name(filled.get("table"), filled.get("chat"))
        if not filled.get("topic"):
            filled["topic"] = f"{filled.get('source')}.{filled['name']}"
        return filled

    def _contradictions(self) -> Iterator[tuple[KeyPath, str]]:
        if self.table is not None and self.chat is not None:
            yield ("chat",), "table and chat are both given; a stream reads one of them"
        if self.table is None and self.chat is None:
            yield (), "neither table nor chat is given; a stream reads one of them"
            return  # and so it has no name
        if not self.name or self.name in {".", ".."} or not self.name.isprintable() or "/" in self.name:
            yield ("name",), "name is empty or has a slash or control character in it; give the stream another name"
        elif not _TOPIC.fullmatch(self.topic) or self.topic in {".", ".."}:
            yield (
                ("topic",),
                f"topic {self.topic!r} is not a Kafka topic name (letters, digits, dot, underscore, hyphen, "
                "at most 249); set topic",
            )
        if self.traversal == "OFFSET" and self.mode != "snapshot":
            yield (
                ("traversal",),
                f"traversal OFFSET cannot be used with mode {self.mode}; use ID_RANGE, or mode snapshot",
            )
        if self.deletes is not None and (self.mode == "snapshot" or self.table is None):
            yield ("deletes",), "deletes needs a table, and a mode that follows it, such as snapshot_then_tail"
        if self.deletes is not None and (self.transforms or self.schema_file is not None):
            yield (
                ("deletes",),
                "deletes cannot be used with transforms or schema: keys are compared as the table has them",
            )
        if self.mode == "timestamp" and not self.order_by:
            yield ("mode",), "mode timestamp needs order_by with the column that holds the time of the last change"
        if self.zone is not None and (self.mode == "snapshot" or self.table is None):
            yield ("zone",), "zone needs a table, and a mode that follows it by a time, such as timestamp"
        if self.start == "latest" and self.mode not in ("tail", "timestamp"):
            yield ("start",), f"start latest cannot be used with mode {self.mode}; use mode tail or timestamp"
        for column in sorted(set(self.columns or ()) & set(self.exclude)):
            yield ("exclude",), f"column {column!r} stands in both columns and exclude; take it out of one of them"


def default_name(table: object, chat: object) -> str:
    """The last part of a table's name without its quotes, or a chat's name without @ or address."""
    if isinstance(table, str):
        last = re.findall(r'"(?:[^"]|"")*"|[^."]+', table)[-1:]
        return last[0].strip('"').replace('""', '"') if last else ""
    if isinstance(chat, str | int) and not isinstance(chat, bool):
        return str(chat).rstrip("/").rsplit("/", 1)[-1].removeprefix("@")
    return ""
