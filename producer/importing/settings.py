"""Owns a Kafka Connect connector's settings: reading their file, and the draft of our configuration made from them.

A connector's file is JSON, as its REST interface takes it (``{"name", "config": {...}}`` or the settings alone), or
Java properties. A setting's value may be a secret: none is ever told, only names are.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producer.errors import ConfigError

Json = Any
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_SEPARATOR = re.compile(r"(?P<key>(?:\\.|[^\\=:\s])+)\s*(?:[=:]\s*)?(?P<value>.*)", re.DOTALL)
_PROVIDER = re.compile(r"\$\{[^}]*\}")


class Settings:
    """A connector's settings; remembers which of them have been looked at."""

    def __init__(self, name: str, values: dict[str, str]) -> None:
        self.name = name
        self._values = values
        self._seen: set[str] = set()

    def take(self, *names: str) -> str:
        """The first of these settings that is not empty, '' without one; all of them count as looked at."""
        self._seen.update(names)
        return next((text for name in names if (text := self._values.get(name, "").strip())), "")

    def items(self, *names: str) -> list[str]:
        """A setting with commas in it, as its parts."""
        return [part.strip() for part in self.take(*names).split(",") if part.strip()]

    def number(self, name: str) -> int | None:
        """A setting that is a whole number; None where it is not set. ConfigError names one that is none."""
        text = self.take(name)
        try:
            return int(text) if text else None
        except ValueError:
            raise ConfigError(f"{name} is text; valid: a whole number") from None

    def starting(self, prefix: str) -> list[str]:
        """The names of the settings that begin so."""
        return [name for name in self._values if name.startswith(prefix)]

    def left(self) -> list[str]:
        """The names that nobody has looked at."""
        return [name for name in self._values if name not in self._seen]


@dataclass(slots=True)
class Draft:
    """Our configuration as it comes about, what a person has to know of it, and the variables that it needs."""

    source: dict[str, Json] = field(default_factory=dict)
    kafka: dict[str, Json] = field(default_factory=dict)
    registry: dict[str, Json] = field(default_factory=dict)
    delivery: str = "at_least_once"
    streams: list[dict[str, Json]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    def note(self, setting: str, text: str) -> None:
        """Something to know of a setting. Where its name holds a salt, as Debezium's may, that is left out."""
        self.notes.append(f"{setting.partition('.with.salt.')[0]}: {text}")

    def variable(self, name: str, meaning: str) -> str:
        """A reference to an environment variable, in the place of a value that is or may be a secret."""
        self.variables[name] = meaning
        return f"${{{name}}}"

    def value(self, text: str, name: str, meaning: str) -> str:
        """The text for our file, or a variable where Connect would have looked it up elsewhere."""
        return self.variable(name, meaning) if _PROVIDER.search(text) else text.replace("$", "$$")


def read_settings(path: Path) -> Settings:
    """The connector in a file; ConfigError when it is not there, not to be read, or holds no connector."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"file {path} does not exist") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    values = _from_json(path, text) if text.lstrip().startswith(("{", "[")) else _from_properties(text)
    if not values.get("connector.class"):
        raise ConfigError(f"{path} has no connector.class", hint="give the JSON or properties of one connector")
    return Settings(values.get("name", path.stem), values)


def _from_json(path: Path, text: str) -> dict[str, str]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: JSON error: {error.msg}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds a list; give one connector a file")
    values = document["config"] if isinstance(document.get("config"), dict) else document
    named = {"name": document["name"]} if isinstance(document.get("name"), str) else {}
    return {**named, **{str(name): _text(value) for name, value in values.items()}}


def _text(value: Json) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _from_properties(text: str) -> dict[str, str]:
    """As `java.util.Properties` reads them: comments, continued lines, escapes."""
    values: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        whole = line.lstrip()
        if not whole or whole[0] in "#!":
            continue
        while (len(whole) - len(whole.rstrip("\\"))) % 2:
            whole = whole[:-1] + next(lines, "").lstrip()
        if match := _SEPARATOR.fullmatch(whole):
            values[_unescaped(match["key"])] = _unescaped(match["value"])
    return values


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _ESCAPES.get(code, code)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", one, text, flags=re.DOTALL)
