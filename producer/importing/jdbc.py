"""Owns the settings of kafka-connect-jdbc's source connector: which tables, how they are followed, to which topics."""

from __future__ import annotations

import re
from typing import Any

from producer.errors import ConfigError
from producer.importing import urls
from producer.importing.settings import Draft, Settings

Json = Any
PLACEHOLDER = "name_a_table"
_ELSEWHERE = {
    "timestamp.initial": "not taken over; where with params begins at a time",
    "db.timezone": "not taken over; for columns without a zone set zone on the stream, and the transform to_utc",
    "timestamp.granularity": "nothing to do: microseconds are kept",
    "validate.non.null": "nothing to do: a key with nulls is refused at the start",
    "quote.sql.identifiers": "nothing to do: identifiers are always quoted",
    "connection.attempts": "see retry_timeout_s",
    "connection.backoff.ms": "see retry_timeout_s; the waits grow by themselves",
    "table.poll.interval.ms": "tables are named in the configuration; new ones are not looked for",
    "table.types": "nothing to do: name tables and views alike",
    "tasks.max": "see max_parallel, and coordination for several processes",
    "dialect.name": "nothing to do: the URL says it",
    "transaction.isolation.mode": "not taken over",
    "query.suffix": "not taken over",
    "query.retry.attempts": "see retry_timeout_s",
}


def convert_jdbc(settings: Settings, draft: Draft) -> None:
    """Fills `draft` from a JDBC source connector; ConfigError for a database or mode that is not known."""
    user = settings.take("connection.user")
    settings.take("connection.password")
    kind = urls.from_jdbc(draft, settings.take("connection.url"), user)
    follow = _mode(settings, draft)
    _settings(settings, draft, follow)
    prefix = settings.take("topic.prefix")
    for parts in _tables(settings, draft, kind):
        draft.streams.append(
            {"source": "database", "table": urls.table_name(parts, kind), "topic": prefix + parts[-1], **follow}
        )
    if settings.take("query"):
        draft.note("query", f"make a view of it and put its name in the place of {PLACEHOLDER}")
        draft.streams = [{"source": "database", "table": PLACEHOLDER, "topic": prefix or "query", **follow}]
    elif not draft.streams:
        draft.note("table.whitelist", f"no table is named, and none are looked for; replace {PLACEHOLDER}")
        draft.streams.append({"source": "database", "table": PLACEHOLDER, "topic": prefix + PLACEHOLDER, **follow})
    for name, text in _ELSEWHERE.items():
        if settings.take(name):
            draft.note(name, text)


def _mode(settings: Settings, draft: Draft) -> dict[str, Json]:
    """The stream's keys that say what is read and in what order."""
    mode = settings.take("mode") or "bulk"
    increasing = settings.take("incrementing.column.name")
    changed = settings.items("timestamp.column.name")
    if len(changed) > 1:
        draft.note("timestamp.column.name", f"only {changed[0]!r} is used; add a column that holds the latest of them")
    ids = [increasing] if increasing else []
    match mode:
        case "bulk":
            draft.note("mode", "bulk: the table is copied once; for a copy each time, run with --once by a timer")
            return {"mode": "snapshot"}
        case "incrementing":
            return {"mode": "snapshot_then_tail", **({"order_by": ids} if ids else {})}
        case "timestamp" | "timestamp+incrementing":
            if not changed:
                raise ConfigError(f"mode is {mode}, and timestamp.column.name is not set")
            delay_ms = settings.number("timestamp.delay.interval.ms")
            return {
                "mode": "timestamp",
                "order_by": [changed[0], *(ids if "+" in mode else [])],
                **({} if delay_ms is None else {"delay_s": delay_ms / 1000}),
            }
    raise ConfigError("mode is not known", hint="bulk, incrementing, timestamp, timestamp+incrementing")


def _settings(settings: Settings, draft: Draft, follow: dict[str, Json]) -> None:
    """Page size, interval and what is done about numbers."""
    if (rows := settings.number("batch.max.rows")) is not None:
        follow["page_size"] = min(max(rows, 1), 1_000_000)
    if (pause_ms := settings.number("poll.interval.ms")) is not None:
        follow["poll_interval_s"] = max(pause_ms, 1) / 1000
    mapping = settings.take("numeric.mapping", "numeric.precision.mapping") or "none"
    if mapping not in ("none", "false"):
        draft.note(
            "numeric.mapping",
            "numbers with a scale stay decimals; for others cast: {column: double}, and decimal for a bare numeric",
        )


def _tables(settings: Settings, draft: Draft, kind: str) -> list[list[str]]:
    """The tables that are named, each as its parts."""
    schema = settings.take("schema.pattern")
    settings.take("catalog.pattern")
    for name in ("table.blacklist", "table.exclude.list"):
        if settings.take(name):
            draft.note(name, "not taken over; name the tables that are to be read")
    found = []
    for setting in ("table.whitelist", "table.include.list"):
        for text in settings.items(setting):
            parts = table_parts(text)
            if parts is None:
                draft.note(setting, f"{text!r} is a pattern; name its tables, a stream each")
                continue
            if len(parts) == 1 and re.fullmatch(r"\w+", schema):
                parts = [schema, *parts]
            found.append(parts[-2:] if kind != "sqlite" else parts[-1:])
    return found


def table_parts(text: str) -> list[str] | None:
    r"""A table's parts, of ``a.b``, ``"a"."b"`` or ``a\.b``; None where the text is a pattern."""
    quoted = r'"(?:[^"]|"")+"|`[^`]+`|(?:[\w$ -])+'
    plain = text.replace("\\.", ".").strip("^")
    plain = plain.removesuffix("$") if plain.endswith("$") and "\\" in text else plain
    if not re.fullmatch(rf"(?:{quoted})(?:\.(?:{quoted}))*", plain):
        return None
    return [part.strip('"`').replace('""', '"').strip() for part in re.findall(quoted, plain)]
