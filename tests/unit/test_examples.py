"""Owns the claim that the example configurations are valid, and that the README's and the documentation's are."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from producer.config import load_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if "\nstreams:" in path.read_text("utf-8")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^(?P<indent> *)```ya?ml[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(textwrap.dedent(block["text"]), id=f"{page.relative_to(ROOT)}:{number}")
    for page in PAGES
    for number, block in enumerate(_FENCED.finditer(page.read_text(encoding="utf-8")))
    if "streams:" in block["text"] and "sources:" in block["text"]
]


def loads(path: Path) -> bool:
    """Whether our own check takes a file, with whatever it asks of the environment and of secret files."""
    text = re.sub(r"\$\{file:[^}]+\}", "something long enough", path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    names = re.findall(r"\$\{([A-Z_]+)\}", text)
    given = {
        name: "broker.long.enough:9092" if "BOOTSTRAP" in name else "http://something.long.enough" for name in names
    }
    return bool(load_config(path, given).streams)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert loads(copy)


@pytest.mark.parametrize("text", BLOCKS)
def test_a_configuration_in_the_documentation_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(text, encoding="utf-8")
    assert loads(path)


def test_the_readme_has_a_configuration() -> None:
    assert any("README.md" in str(block.id) for block in BLOCKS)
