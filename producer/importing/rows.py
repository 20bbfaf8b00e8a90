"""Owns Connect's transforms and converters as ours: what is done to columns, key and topic, and the registry."""

from __future__ import annotations

import re
from typing import Any

from producer.importing.settings import Draft, Settings

Json = Any
_CASTS = {
    "int8": "int",
    "int16": "int",
    "int32": "int",
    "int64": "long",
    "float32": "float",
    "float64": "double",
    "boolean": "boolean",
    "string": "string",
}
_STRATEGIES = {
    "TopicNameStrategy": "topic_name",
    "RecordNameStrategy": "record_name",
    "TopicRecordNameStrategy": "topic_record_name",
}


def convert_transforms(settings: Settings, draft: Draft) -> None:
    """Goes through ``transforms`` in their order; what has no counterpart is noted."""
    added = False
    for alias in settings.items("transforms"):
        prefix = f"transforms.{alias}"
        kind = settings.take(f"{prefix}.type")
        name = kind.rpartition(".")[2]
        told = f"{prefix} ({name or 'without a type'})"
        if settings.take(f"{prefix}.predicate"):
            draft.note(told, "has a predicate; not taken over. A stream's where chooses rows")
            settings.take(*settings.starting(f"{prefix}."))
            continue
        before = len(draft.notes)
        transforms = _transforms(settings, draft, prefix, told, name)
        added = added or bool(transforms)
        for stream in draft.streams if transforms else ():
            stream.setdefault("transforms", []).extend(transforms)
        rest = [each.removeprefix(f"{prefix}.") for each in settings.starting(f"{prefix}.") if each in settings.left()]
        settings.take(*(f"{prefix}.{each}" for each in rest))
        if rest and len(draft.notes) == before:
            draft.note(told, f"{', '.join(rest)} not taken over")
    if added and len(draft.streams) > 1:
        draft.note("transforms", "each stream has all of them; take out what names columns that a table has not got")


def _transforms(settings: Settings, draft: Draft, prefix: str, told: str, name: str) -> list[dict[str, Json]]:
    match name:
        case "ReplaceField$Value":
            return _replace_field(settings, draft, prefix)
        case "MaskField$Value":
            columns = settings.items(f"{prefix}.fields")
            text = settings.take(f"{prefix}.replacement")
            if not text:
                draft.note(told, "Connect puts 0 or an empty text in; here each value becomes ***")
            return [{"mask": _literal(columns), "with": (text or "***").replace("$", "$$")}]
        case "Cast$Value":
            pairs = [item.rpartition(":") for item in settings.items(f"{prefix}.spec")]
            if whole := [kind for column, _, kind in pairs if not column or kind not in _CASTS]:
                draft.note(told, f"not taken over for {', '.join(whole)}")
            casts = {column.strip(): _CASTS[kind] for column, _, kind in pairs if column and kind in _CASTS}
            return [{"cast": casts}] if casts else []
        case "InsertField$Value":
            column, value = settings.take(f"{prefix}.static.field"), settings.take(f"{prefix}.static.value")
            if column and "${" not in value:
                return [{"constant": {column.strip(): value.replace("$", "$$")}}]
            draft.note(told, "only static.field is taken over; topic, position and run are in the record's headers")
        case "ValueToKey":
            for stream in draft.streams:
                stream["key"] = _literal(settings.items(f"{prefix}.fields"))
        case "ExtractField$Key":
            settings.take(f"{prefix}.field")
            draft.note(told, "the record's key stays a record with a field for each column of the key")
        case "RegexRouter":
            _route(settings, draft, prefix, told)
        case "ExtractNewRecordState":
            draft.note(told, "nothing to do: records are the flat row")
            settings.take(*settings.starting(f"{prefix}."))
        case "TimestampConverter$Value":
            column = settings.take(f"{prefix}.field")
            draft.note(told, f"column {column!r} keeps its type; see the transforms cast and to_utc")
            settings.take(*settings.starting(f"{prefix}."))
        case _:
            draft.note(told, "has no counterpart")
            settings.take(*settings.starting(f"{prefix}."))
    return []


def _replace_field(settings: Settings, draft: Draft, prefix: str) -> list[dict[str, Json]]:
    if include := settings.items(f"{prefix}.include", f"{prefix}.whitelist"):
        for stream in draft.streams:
            stream["columns"] = _literal(include)
    made: list[dict[str, Json]] = []
    if exclude := settings.items(f"{prefix}.exclude", f"{prefix}.blacklist"):
        made.append({"drop": _literal(exclude)})
    pairs = [item.partition(":") for item in settings.items(f"{prefix}.renames")]
    if renames := {old.strip(): new.strip() for old, _, new in pairs if new}:
        made.append({"rename": renames})
    return made


def _route(settings: Settings, draft: Draft, prefix: str, told: str) -> None:
    regex, replacement = settings.take(f"{prefix}.regex"), settings.take(f"{prefix}.replacement")
    try:
        pattern = re.compile(regex)
        for stream in draft.streams:
            if found := pattern.fullmatch(stream["topic"]):
                stream["topic"] = found.expand(re.sub(r"\$(\d+)", r"\\g<\1>", replacement))
    except (re.error, IndexError):
        draft.note(told, "its regex is not understood; set each stream's topic")


def convert_converters(settings: Settings, draft: Draft) -> None:
    """The registry of the value's converter; records are Avro, whatever Connect made of them."""
    kind = settings.take("value.converter").rpartition(".")[2]
    key = settings.take("key.converter").rpartition(".")[2]
    url = settings.take("value.converter.schema.registry.url", "key.converter.schema.registry.url").split(",")[0]
    apicurio = settings.take("value.converter.apicurio.registry.url", "key.converter.apicurio.registry.url")
    if apicurio and not url:
        url = apicurio.split("/apis/")[0] + "/apis/ccompat/v7"
        draft.note("value.converter.apicurio.registry.url", "its Confluent-compatible interface is used")
    if kind and "Avro" not in kind:
        draft.note("value.converter", f"{kind}: records are Avro here; readers have to change")
    if key and "Avro" not in key:
        draft.note("key.converter", f"{key}: the key is an Avro record of the key's columns")
    user = settings.take("value.converter.basic.auth.user.info", "value.converter.schema.registry.basic.auth.user.info")
    if url:
        scheme, _, rest = url.partition("://")
        login, _, place = rest.rpartition("@")
        place = f"{scheme}://{place}"
        draft.registry["url"] = draft.value(place, "SCHEMA_REGISTRY_URL", "the schema registry's URL")
        if user or login:
            draft.registry["username"] = draft.variable("SCHEMA_REGISTRY_USER", "the schema registry's user")
            draft.registry["password"] = draft.variable("SCHEMA_REGISTRY_PASSWORD", "the schema registry's password")
        if settings.take("value.converter.auto.register.schemas") == "false":
            draft.registry["auto_register"] = False
        strategy = settings.take("value.converter.value.subject.name.strategy").rpartition(".")[2]
        if strategy in _STRATEGIES:
            draft.registry["subject_strategy"] = _STRATEGIES[strategy]
        elif strategy:
            draft.note("value.converter.value.subject.name.strategy", "has no counterpart")
    for side in ("key", "value"):
        for name in (
            "basic.auth.credentials.source",
            "basic.auth.user.info",
            "schemas.enable",
            "auto.register.schemas",
            "enhanced.avro.schema.support",
            "apicurio.registry.auto-register",
            "apicurio.registry.find-latest",
            "apicurio.registry.as-confluent",
            "key.subject.name.strategy",
        ):
            settings.take(f"{side}.converter.{name}")


def _literal(texts: list[str]) -> list[str]:
    return [text.replace("$", "$$") for text in texts]
