"""Owns the claim that the tutorial works: its files are written and its commands run, in their order, in one shell.

Only the set-up is left out, since the tests themselves begin with it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from producer.embedded import EmbeddedKafka, free_port
from tests.integration.kafka_rows import read_topic

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
_BLOCK = re.compile(r'^```(?P<kind>sh|yaml title="(?P<file>[^"]+)")\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


def script(folder: Path) -> str:
    """The tutorial's commands, and its files written into `folder`."""
    commands = ["set -euo pipefail"]
    for block in _BLOCK.finditer(TUTORIAL.read_text(encoding="utf-8")):
        if block["file"]:
            (folder / block["file"]).write_text(block["text"], encoding="utf-8")
        else:
            commands.append(block["text"])
    return "\n".join(commands)


@pytest.fixture
def path_with_producer(tmp_path: Path) -> str:
    """A PATH on which ``producer`` is the code under test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "producer"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m producer "$@"\n')
    command.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.timeout(300)
async def test_every_command_of_the_tutorial_does_what_it_says(
    own_kafka: Callable[..., EmbeddedKafka], path_with_producer: str, tmp_path: Path
) -> None:
    bootstrap = own_kafka().bootstrap
    folder = tmp_path / "tutorial"
    folder.mkdir()
    done = subprocess.run(
        ["bash", "-c", script(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={
            **os.environ,
            "PATH": path_with_producer,
            "PYTHONPATH": str(ROOT),
            "PYTHONIOENCODING": "utf-8",
            "KAFKA_BOOTSTRAP": bootstrap,
            "HTTP_PORT": str(free_port()),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PROOF: every row is on the topic once, with the same values" in done.stdout
    assert "exit code 143" in done.stdout
    sent = Counter(record.key for record in await read_topic(bootstrap, "shop.orders"))
    assert len(sent) == 1010
    assert sum(sent.values()) == 1020
