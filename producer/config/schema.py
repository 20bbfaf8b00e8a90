"""Owns the JSON Schema of configuration files, generated from the models for editors (yaml-language-server)."""

from __future__ import annotations

from typing import Any

from producer.config import Config, source_model
from producer.sources import SOURCES

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
_INTERPOLATED = {"type": "string", "pattern": r"\$\{.+\}"}
_SIZE = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*([kMG]i?)?B?$"}


def config_json_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12. Where a number, boolean or choice belongs, ``${...}`` is accepted as well."""
    schema = Config.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    choices = []
    for kind in SOURCES:
        model = source_model(kind)
        own = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        own["properties"]["type"] = {"const": kind}
        own["required"] = sorted({*own.get("required", ()), "type"})
        definitions[model.__name__] = own
        choices.append({"$ref": f"#/$defs/{model.__name__}"})
    schema["properties"]["sources"] = {
        "type": "object",
        "title": "Sources",
        "additionalProperties": {"oneOf": choices},
    }
    schema["title"] = "producer configuration"
    loosened: dict[str, Any] = _loosened(schema)
    return {"$schema": SCHEMA_ID, **loosened}


def _loosened(node: Any) -> Any:
    if isinstance(node, list):
        return [_loosened(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") in ("integer", "number", "boolean") or "enum" in node:
        about = {key: node[key] for key in ("title", "description", "default") if key in node}
        sized = [_SIZE] if "such as 64MiB" in node.get("description", "") else []
        strict = {key: value for key, value in node.items() if key not in about}
        return {"anyOf": [strict, *sized, _INTERPOLATED], **about}
    return {key: _loosened(value) for key, value in node.items()}
