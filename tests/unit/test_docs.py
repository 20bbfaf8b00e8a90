"""Owns the claims about the documentation: its reference pages are current, its site builds, and no link is dead."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from producer.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)(?P<path>[^)#\s]+)")


def test_the_reference_is_that_of_the_models_metrics_and_commands() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, check=False, env=_environment())
    assert done.returncode == 0, "write it anew: make docs"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_links_to_files_that_are_there(page: Path) -> None:
    links = [match["path"] for match in _LINK.finditer(page.read_text(encoding="utf-8"))]
    assert not [link for link in links if not (page.parent / link).exists()]


def _commands() -> list[str]:
    """The lines of the pages that are commands of ours, wherever they stand."""
    line = re.compile(r"^\s*(?:\$ )?(?:\.venv/bin/)?producer (?P<rest>[a-z].*)$", re.MULTILINE)
    found = [match["rest"] for page in PAGES for match in line.finditer(page.read_text(encoding="utf-8"))]
    return [text for text in dict.fromkeys(found) if "CONFIG" not in text and "|" not in text]


@pytest.mark.parametrize("command", _commands())
def test_a_command_in_the_documentation_is_one(command: str) -> None:
    words = itertools.takewhile(lambda word: word not in (">", "&", ";"), shlex.split(command, comments=True))
    assert build_parser().parse_args(list(words)).run


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
