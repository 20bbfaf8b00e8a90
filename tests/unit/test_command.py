"""Owns the claims about how the process begins and ends."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from producer.cli import build_parser
from producer.commands import COMMANDS

ENDING = """
import atexit, gc
from producer import cli

cli.main = lambda: 7
atexit.register(lambda: print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000))
cli.command()
"""


def test_at_the_end_nothing_is_left_to_look_through_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, "True True\n"), done.stderr


def commands_of(parser: argparse.ArgumentParser) -> list[str]:
    (actions,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return list(actions.choices)


def test_every_command_is_in_the_table_of_commands() -> None:
    assert commands_of(build_parser()) == list(COMMANDS)
    assert commands_of(build_parser(["--help", "run"])) == list(COMMANDS)


@pytest.mark.parametrize("word", COMMANDS)
def test_a_command_starts_without_the_others(word: str) -> None:
    assert commands_of(build_parser([word])) == [w for w, module in COMMANDS.items() if module == COMMANDS[word]]
