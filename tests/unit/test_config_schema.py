"""Owns the claims about the JSON Schema for editors: it is current, and knows every key."""

from __future__ import annotations

import json
from pathlib import Path

from producer.config.schema import config_json_schema
from producer.sources import SOURCES

FILE = Path(__file__).resolve().parents[2] / "schemas" / "config.schema.json"


def test_the_file_is_current() -> None:
    committed = json.loads(FILE.read_text(encoding="utf-8"))
    assert committed == config_json_schema(), "write it anew: producer schema config > schemas/config.schema.json"


def test_every_kind_of_source_is_a_choice_told_by_its_type() -> None:
    schema = config_json_schema()
    choices = [
        choice["$ref"].removeprefix("#/$defs/")
        for choice in schema["properties"]["sources"]["additionalProperties"]["oneOf"]
    ]
    assert [schema["$defs"][choice]["properties"]["type"] for choice in choices] == [
        {"const": kind} for kind in SOURCES
    ]


def test_unknown_keys_are_marked_everywhere() -> None:
    for name, definition in config_json_schema()["$defs"].items():
        if definition.get("type") == "object":
            assert definition["additionalProperties"] is False, name


def test_a_number_may_come_from_the_environment() -> None:
    port = config_json_schema()["$defs"]["HttpConfig"]["properties"]["port"]
    assert {"type": "string", "pattern": r"\$\{.+\}"} in port["anyOf"]


def test_every_reference_leads_somewhere() -> None:
    schema = config_json_schema()
    for reference in {part.split('"')[0] for part in json.dumps(schema).split('"#/$defs/')[1:]}:
        assert reference in schema["$defs"]
