"""Owns the reading of the Dockerfile: its stages and their instructions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parents[2] / "Dockerfile"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction with its lines joined; `stage` is counted from 0."""

    stage: int
    name: str
    text: str

    def words(self) -> list[str]:
        """The arguments of one in exec form, also those of HEALTHCHECK's CMD."""
        found: list[str] = json.loads(self.text[self.text.index("[") :])
        return found


def instructions() -> list[Instruction]:
    text = "".join(line for line in DOCKERFILE.read_text().splitlines(keepends=True) if not line.startswith("#"))
    found: list[Instruction] = []
    stage = -1
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            stage += name == "FROM"
            found.append(Instruction(stage, name, " ".join(rest.split())))
    return found


def only(name: str, stage: int) -> Instruction:
    (found,) = (each for each in instructions() if (each.name, each.stage) == (name, stage))
    return found
