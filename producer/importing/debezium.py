"""Owns the settings of Debezium's PostgreSQL, MySQL and MariaDB connectors: snapshot, tables, columns and topics."""

from __future__ import annotations

import re
from typing import Any

from producer.importing import urls
from producer.importing.jdbc import PLACEHOLDER, table_parts
from producer.importing.settings import Draft, Settings

Json = Any
KINDS = {"PostgresConnector": "postgresql", "MySqlConnector": "mysql", "MariaDbConnector": "mariadb"}
_MODES = {
    "initial": "snapshot_then_tail",
    "always": "snapshot_then_tail",
    "when_needed": "snapshot_then_tail",
    "initial_only": "snapshot",
    "exported": "snapshot_then_tail",
    "never": "tail",
    "no_data": "tail",
    "schema_only": "tail",
}
_LOG = "the database's log is not read"
_NOT_NEEDED = {
    "plugin.name": _LOG,
    "slot.": f"{_LOG}; drop the replication slot when nothing uses it any more, since it holds back the database's log",
    "publication.": _LOG,
    "database.server.id": _LOG,
    "binlog.": _LOG,
    "gtid.": _LOG,
    "include.schema.changes": "see the schema registry for a topic's schemas",
    "schema.history.internal": "no history of schemas is kept; each record names its own",
    "database.history": "no history of schemas is kept; each record names its own",
    "heartbeat.": "no heartbeats: a replication slot would need them",
    "signal.": "see producer replay, pause and resume",
    "notification.": "see /metrics and the status page",
    "tombstones.on.delete": "nothing to do",
    "skipped.operations": "nothing to do",
    "max.batch.size": "see page_size",
    "max.queue.size": "see kafka.max_inflight_bytes",
    "poll.interval.ms": "how often Debezium looks into its own queue; poll_interval_s is how often the table is read",
    "provide.transaction.metadata": "has no counterpart",
    "time.precision.mode": "timestamps are timestamp-micros, dates date",
    "tasks.max": "see max_parallel, and coordination for several processes",
}


def convert_debezium(settings: Settings, draft: Draft, kind: str) -> None:
    """Fills `draft` from a Debezium connector of a `kind` of database."""
    host, port = settings.take("database.hostname"), settings.take("database.port")
    database = settings.take("database.dbname")
    settings.take("database.password")
    asked = {}
    for name in ("sslmode", "sslrootcert", "sslcert", "sslkey"):
        if (text := settings.take(f"database.{name}")) and kind == "postgresql":
            asked[name] = text
    tables = _tables(settings, draft)
    databases = settings.items("database.include.list", "database.whitelist")
    if kind != "postgresql" and not database:
        database = (databases or [parts[0] for parts in tables if len(parts) > 1] or [""])[0]
    where = f"{host}:{port}" if port and "${" not in host + port else host
    user = settings.take("database.user")
    draft.source["url"] = urls.make(draft, kind, where, user, database, asked)
    _streams(settings, draft, kind, tables)
    _columns(settings, draft, kind)
    if bootstrap := settings.take("schema.history.internal.kafka.bootstrap.servers"):
        draft.kafka["bootstrap_servers"] = draft.value(bootstrap, "KAFKA_BOOTSTRAP", "the brokers")
    draft.note(
        "deletes and changes",
        "changed rows are sent with order_by: [the column of the last change]; deleted ones are looked for with "
        "deletes: {every_s: 300}; no record has a row's state before a change",
    )
    for prefix, text in _NOT_NEEDED.items():
        if names := [name for name in settings.starting(prefix) if name in settings.left()]:
            settings.take(*names)
            draft.note(prefix + ("*" if prefix.endswith(".") else ""), text)


def _tables(settings: Settings, draft: Draft) -> list[list[str]]:
    found = []
    for text in settings.items("table.include.list", "table.whitelist"):
        if (parts := table_parts(text)) is None:
            draft.note("table.include.list", f"{text!r} is a pattern; name its tables, a stream each")
        else:
            found.append(parts[-2:])
    for name in ("table.exclude.list", "schema.include.list", "schema.exclude.list", "database.exclude.list"):
        if settings.take(name):
            draft.note(name, "not taken over; name the tables that are to be read")
    return found


def _streams(settings: Settings, draft: Draft, kind: str, tables: list[list[str]]) -> None:
    prefix = settings.take("topic.prefix", "database.server.name")
    asked = settings.take("snapshot.mode") or "initial"
    common: dict[str, Json] = {"mode": _MODES.get(asked, "snapshot_then_tail")}
    if common["mode"] == "tail":
        common["start"] = "latest"
    if asked not in _MODES or asked == "always":
        draft.note("snapshot.mode", f"{asked} has no counterpart; a snapshot is made once, and then new rows are sent")
    if (rows := settings.number("snapshot.fetch.size")) is not None:
        common["page_size"] = min(max(rows, 1), 1_000_000)
    if (threads := settings.number("snapshot.max.threads")) is not None:
        common["max_parallel"] = min(max(threads, 1), 64)
    decimals = settings.take("decimal.handling.mode") or "precise"
    if decimals != "precise":
        draft.note("decimal.handling.mode", f"decimals stay decimals; for others cast: {{column: {decimals}}}")
    if not tables:
        draft.note("table.include.list", f"no table is named, and none are looked for; replace {PLACEHOLDER}")
    for parts in tables or [[PLACEHOLDER]]:
        topic = ".".join(part for part in (prefix, *parts) if part)
        draft.streams.append({"source": "database", "table": urls.table_name(parts, kind), "topic": topic, **common})
    for item in settings.take("message.key.columns").split(";"):
        table, _, columns = item.partition(":")
        for stream in _matching(draft, table, kind):
            stream["key"] = [name.strip() for name in columns.split(",")]
    for name in settings.starting("snapshot.select.statement.overrides"):
        settings.take(name)
        draft.note(name, "see where with params")


def _columns(settings: Settings, draft: Draft, kind: str) -> None:
    for setting, key in (
        ("column.include.list", "columns"),
        ("column.exclude.list", "exclude"),
        ("column.whitelist", "columns"),
        ("column.blacklist", "exclude"),
    ):
        for text in settings.items(setting):
            for stream, column in _column(draft, setting, text, kind):
                stream.setdefault(key, []).append(column)
    for setting in settings.starting("column.mask."):
        columns = settings.items(setting)
        length = re.fullmatch(r"column\.mask\.with\.(\d+)\.chars", setting)
        for text in columns:
            for stream, column in _column(draft, setting, text, kind):
                way = {"with": "*" * int(length[1])} if length else {"salt": draft.variable("MASK_SALT", "a salt")}
                stream.setdefault("transforms", []).append({"mask": [column], **way})
        if not length:
            draft.note(setting, "hashed with HMAC-SHA-256 here: not the values that Debezium made")


def _column(draft: Draft, setting: str, text: str, kind: str) -> list[tuple[dict[str, Json], str]]:
    parts = table_parts(text)
    found = [(stream, parts[-1]) for stream in _matching(draft, ".".join(parts[:-1]), kind)] if parts else []
    if not found:
        draft.note(setting, f"{text!r} is not taken over")
    return found


def _matching(draft: Draft, table: str, kind: str) -> list[dict[str, Json]]:
    parts = table_parts(table.strip()) if table.strip() else None
    wanted = urls.table_name(parts[-2:], kind) if parts else None
    return [stream for stream in draft.streams if stream["table"] == wanted]
