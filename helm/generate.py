"""Owns what is derived from the chart's schema: values.yaml and the table of values in README.md.

``python helm/generate.py`` writes both; with ``--check`` nothing is written and the exit code is 1 if one is not
current.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_BEGIN, _END = "<!-- values -->\n", "<!-- end of values -->\n"


def main(arguments: list[str]) -> int:
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in arguments:
        return bool(stale)
    for path in stale:
        path.write_text(generated()[path], "utf-8")
    return 0


def generated() -> dict[Path, str]:
    """Each derived file with its text."""
    schema = json.loads((HERE / "values.schema.json").read_text("utf-8"))
    readme = (HERE / "README.md").read_text("utf-8")
    before, _, rest = readme.partition(_BEGIN)
    table = "| value | default | meaning |\n|---|---|---|\n" + "".join(_rows(schema["properties"], ""))
    head = "# Generated from values.schema.json by generate.py; what each value means stands above it.\n"
    return {
        HERE / "values.yaml": head + "\n".join(_yaml(schema["properties"], "")) + "\n",
        HERE / "README.md": before + _BEGIN + table + _END + rest.partition(_END)[2],
    }


def _rows(properties: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in properties.items():
        if "properties" in value:
            yield from _rows(value["properties"], f"{prefix}{name}.")
        else:
            meaning = value["description"] + _choice(value)
            yield f"| `{prefix}{name}` | `{json.dumps(value['default'])}` | {meaning.replace('|', '&#124;')} |\n"


def _yaml(properties: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in properties.items():
        if not indent:
            yield ""
        if "properties" in value:
            yield f"{indent}{name}:"
            yield from _yaml(value["properties"], indent + "  ")
        else:
            text = value["description"] + _choice(value)
            yield from textwrap.wrap(text, 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            yield f"{indent}{name}: {json.dumps(value['default'])}"


def _choice(value: Mapping[str, Any]) -> str:
    return f" ({', '.join(value['enum'])})." if "enum" in value else "."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
