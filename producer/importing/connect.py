"""Owns turning a Kafka Connect source connector's settings into the text of our configuration.

Known are kafka-connect-jdbc's source (and connectors that took its settings over) and Debezium's for PostgreSQL, MySQL
and MariaDB. What has no counterpart is said in comments at the top; a password becomes an environment variable.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from producer.errors import ConfigError
from producer.importing.debezium import KINDS, convert_debezium
from producer.importing.jdbc import convert_jdbc
from producer.importing.rows import convert_converters, convert_transforms
from producer.importing.settings import Draft, Settings

Json = Any
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
_OWN = ("connector.class", "name", "config.providers")


def convert(settings: Settings) -> str:
    """The YAML, comments first. ConfigError for a connector that there is nothing like here."""
    draft = Draft()
    kind = settings.take("connector.class").rpartition(".")[2]
    settings.take(*_OWN)
    if "JdbcSource" in kind:
        convert_jdbc(settings, draft)
    elif kind in KINDS:
        convert_debezium(settings, draft, KINDS[kind])
    else:
        known = "kafka-connect-jdbc's source, Debezium's " + ", ".join(KINDS)
        raise ConfigError(f"connector.class {kind} has no counterpart", hint=f"known: {known}")
    _broker(settings, draft)
    convert_converters(settings, draft)
    convert_transforms(settings, draft)
    for name in settings.left():
        draft.note(name, "has no counterpart")
    _names(draft)
    return _text(settings, draft, kind)


def _broker(settings: Settings, draft: Draft) -> None:
    override = "producer.override."
    if servers := settings.take(f"{override}bootstrap.servers"):
        draft.kafka["bootstrap_servers"] = draft.value(servers, "KAFKA_BOOTSTRAP", "the brokers")
    draft.kafka.setdefault("bootstrap_servers", "${KAFKA_BOOTSTRAP:-localhost:9092}")
    if (codec := settings.take(f"{override}compression.type")) in _CODECS:
        draft.kafka["compression"] = codec
    if (size := settings.number(f"{override}max.request.size")) is not None:
        draft.kafka["max_request_size"] = size
    for name in settings.starting(override):
        if name in settings.left():
            settings.take(name)
            draft.note(name, "not taken over; see kafka in the reference")
    if settings.take("exactly.once.support").lower() == "required":
        draft.delivery = "exactly_once"
    settings.take("transaction.boundary")
    if settings.take("errors.tolerance") == "all":
        for stream in draft.streams:
            stream["on_bad_record"] = "dead_letter"
    for prefix in ("errors.", "topic.creation."):
        names = [name for name in settings.starting(prefix) if name in settings.left()]
        if names:
            settings.take(*names)
            text = "see partitions, replication_factor and topic_config" if prefix[0] == "t" else "see on_bad_record"
            draft.note(prefix + "*", text)


def _names(draft: Draft) -> None:
    """Topics that Kafka takes, and a name of its own for each stream."""
    tables = [stream["table"].rpartition(".")[2] for stream in draft.streams]
    for stream, table in zip(draft.streams, tables, strict=True):
        if tables.count(table) > 1:
            stream["name"] = re.sub(r"[^\w.-]+", "_", stream["table"])
        topic = re.sub(r"[^A-Za-z0-9._-]", "_", stream["topic"])[:249]
        if topic != stream["topic"]:
            draft.note("topic", f"{topic} in the place of a name that Kafka would not take")
            stream["topic"] = topic


def _text(settings: Settings, draft: Draft, kind: str) -> str:
    app = re.sub(r"[^A-Za-z0-9._-]", "-", settings.name)[:100] or "producer"
    document: dict[str, Json] = {"app": app, "kafka": draft.kafka}
    if draft.registry:
        document["schema_registry"] = draft.registry
    document["checkpoints"] = {"type": "kafka"}
    if draft.delivery == "exactly_once":
        document["delivery"] = "exactly_once"
    document["sources"] = {"database": {"type": "sql", **draft.source}}
    document["streams"] = draft.streams
    head = [f"From the {kind} connector {app}. Its offsets are not taken over: the first run begins at the beginning."]
    if draft.variables:
        head += ["", "Environment variables that it needs:"]
        head += [f"  {name}: {meaning}" for name, meaning in draft.variables.items()]
    if draft.notes:
        head += ["", "What is different, or not taken over:"]
        head += [f"  {note}" for note in dict.fromkeys(draft.notes)]
    comments = "".join(f"# {' '.join(line.splitlines())}".rstrip() + "\n" for line in head)
    return comments + yaml.dump(
        document, Dumper=_Dumper, default_flow_style=False, sort_keys=False, allow_unicode=True, width=110
    )


class _Dumper(yaml.SafeDumper):
    """Repeats a list that occurs twice, instead of an anchor; short lists stand on one line."""

    def ignore_aliases(self, data: Json) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Json, flow_style: bool | None = None) -> yaml.SequenceNode:
        flow = all(isinstance(item, str) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flow)
