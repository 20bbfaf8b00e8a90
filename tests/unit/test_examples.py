"""Owns the claim that the example configurations are valid, and that the README's are."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from producer.config import load_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if "\nstreams:" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"\$\{([A-Z_]+)\}", text)
    assert load_config(path, dict.fromkeys(names, "http://x")).streams


def test_the_configuration_of_the_readme_loads(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"\n\n((?:    .*\n)*    streams:\n(?:    .*\n)*)", readme)
    path = tmp_path / "shop.yaml"
    path.write_text(textwrap.dedent(block))
    assert load_config(path, {"PGPASSWORD": "x"}).streams[0].topic == "shop.events"
