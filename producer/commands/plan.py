"""Owns ``producer plan``: what a first run would do, without doing it. Reads the source only, and writes nothing."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.errors import ConfigError

if TYPE_CHECKING:
    from producer.config import Config, StreamConfig
    from producer.model import Json, KeyScalar
    from producer.protocols import Source


def add_parser(subparsers: Any) -> None:
    text = "show the streams, splits, estimated rows, schemas and topics of a first run; writes nothing"
    parser = subparsers.add_parser("plan", help=text, description=text)
    options.add_config(parser)
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = options.load(args)
    plans = asyncio.run(_plan_all(config))
    if args.json:
        options.say_json(plans)
        return 0
    for plan in plans:
        estimate = "an unknown number of" if plan["rows_estimate"] is None else f"about {plan['rows_estimate']:,}"
        options.say(f"{plan['stream']}: {estimate} rows of {plan['from']} ({plan['source']}) -> topic {plan['topic']}")
        options.say(f"  traversal {plan['traversal']}, mode {plan['mode']}, key {', '.join(plan['key']) or 'none'}")
        for split in plan["splits"]:
            after, end = _shown(split["lower"]) or "the start", _shown(split["upper"]) or "the end"
            options.say(f"  split {split['id']}: after {after} up to {end}")
        if plan["null_keys"]:
            options.say(f"  to the dead letters: {plan['null_keys']}")
        for field in plan["schema"].get("fields", ()):
            options.say(f"  field {field['name']}: {type_name(field['type'])}")
    return 0


async def _plan_all(config: Config) -> list[dict[str, Any]]:
    from producer.parts import make_source

    sources: dict[str, Source] = {}
    try:
        for stream in config.streams:
            if stream.source not in sources:
                sources[stream.source] = make_source(config, stream.source)
                await sources[stream.source].start()
        return [await _plan(stream, sources[stream.source]) for stream in config.streams]
    finally:
        for source in sources.values():
            await options.close(source)


async def _plan(stream: StreamConfig, source: Source) -> dict[str, Any]:
    from producer.model import position_to_json
    from producer.parts import schemas_of
    from producer.protocols import NullKeySource

    dataset = await source.describe(stream)
    schemas = schemas_of(stream, dataset)
    splits = await source.plan(stream, dataset)
    lacking = await source.null_keys(stream) if isinstance(source, NullKeySource) else None
    if not splits:
        raise ConfigError(f"stream {stream.name!r} has nothing to read")
    return {
        "stream": stream.name,
        "source": stream.source,
        "from": dataset.name,
        "topic": stream.topic,
        "traversal": stream.traversal,
        "mode": stream.mode,
        "key": list(dataset.key),
        "rows_estimate": dataset.rows_estimate,
        "fingerprint": dataset.fingerprint(stream.traversal),
        "splits": [
            {"id": split.id, "lower": position_to_json(split.lower), "upper": position_to_json(split.upper)}
            for split in splits
        ],
        "null_keys": None if lacking is None or not lacking.rows else lacking.message(stream.name),
        "key_schema": schemas.key,
        "schema": schemas.value,
    }


def _shown(position: Json) -> str:
    """A position's values as people write them: text in quotes, bytes in hex, the others plain; '' for none."""
    from producer.model import KeyPosition, OffsetPosition, position_from_json

    match position_from_json(position):
        case OffsetPosition(rows):
            return f"row {rows:,}"
        case KeyPosition(values):
            return ", ".join(_shown_value(value) for value in values)
    return ""


def _shown_value(value: KeyScalar) -> str:
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False)
        case bytes():
            return f"0x{value.hex()}"
    return str(value)


def type_name(schema: Any) -> str:
    """An Avro type in a few words: ``long``, ``timestamp-micros or null``, ``decimal(12, 2)``, ``array of string``."""
    match schema:
        case str():
            return schema
        case list():
            return " or ".join(type_name(member) for member in sorted(schema, key=lambda member: member == "null"))
        case {"logicalType": "decimal"}:
            return f"decimal({schema['precision']}, {schema.get('scale', 0)})"
        case {"logicalType": str(logical)}:
            return logical
        case {"type": "array"}:
            return f"array of {type_name(schema['items'])}"
        case {"type": "map"}:
            return f"map of {type_name(schema['values'])}"
        case {"type": "enum"}:
            return f"enum {schema['name']}"
        case {"type": inner}:
            return type_name(inner)
    return "?"
