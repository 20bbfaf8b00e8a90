"""Owns reading the YAML of a configuration file: positions, duplicate keys, and ``${...}`` in its text.

Knows nothing of what the keys mean. Interpolation works on every string value, never on keys:
``${NAME}`` and ``${NAME:-default}`` are environment variables (the default also stands in for an empty one),
``${file:PATH}`` is a file's text, stripped, relative to the configuration file; ``$$`` is a dollar sign.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from producer.errors import ConfigError

KeyPath = tuple[str | int, ...]

_DOLLAR = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<inside>[^}]*)(?P<closed>\})?)")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)
_MAX_ALIASED_NODES = 100_000


@dataclass(frozen=True, slots=True)
class ConfigText:
    """A parsed file: its data with ``${...}`` put in, and the line (from 1) on which each key path stands.

    What has been `interpolated` may be a secret, whatever its key. `problems` are the ``${...}`` that nothing could be
    put in for.
    """

    path: Path
    data: Any
    lines: Mapping[KeyPath, int]
    interpolated: set[KeyPath] = field(default_factory=set)
    problems: dict[KeyPath, ConfigError] = field(default_factory=dict)

    def at(self, where: KeyPath) -> str:
        """``file:line`` of a key path, or of the nearest parent that stands in the file."""
        for end in range(len(where), 0, -1):
            if (line := self.lines.get(where[:end])) is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def read_config_text(path: Path, env: Mapping[str, str]) -> ConfigText:
    """Reads and interpolates a file; ConfigError names the line and what is wrong where it cannot be read at all."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; a configuration is a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    raw, lines = _parse(path, content)
    if raw is None:
        raise ConfigError(f"{path} is empty", hint="it needs at least `sources` and `streams`")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {kind_of(raw)}; a configuration is a mapping of keys to values")
    text = ConfigText(path, None, lines)
    return replace(text, data=_interpolate(raw, (), text, env))


def kind_of(value: object) -> str:
    """The kind of a YAML value in words, without the value itself (it may be a secret)."""
    match value:
        case None:
            return "empty"
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a decimal number"
        case str():
            return "text"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"


def dotted(where: KeyPath) -> str:
    """A key path as people write it: ``streams[0].page_size``."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _parse(path: Path, text: str) -> tuple[Any, dict[KeyPath, int]]:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is None:
            return None, lines
        _walk(loader, path, node, (), lines, ())
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = (error.problem or error.context or "not YAML").replace("\n", " ")
        raise ConfigError(f"{place}: YAML error: {problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a timestamp such as 2024-02-31
        raise ConfigError(f"{path}: YAML error: {' '.join(str(error).split())}") from None


def _walk(
    loader: yaml.SafeLoader,
    path: Path,
    node: yaml.Node,
    where: KeyPath,
    lines: dict[KeyPath, int],
    ancestors: tuple[int, ...],
) -> None:
    """Notes each key path's line, and refuses duplicate keys, keys that are not text, and endless anchors."""
    line = node.start_mark.line + 1
    if id(node) in ancestors or len(lines) > _MAX_ALIASED_NODES:
        raise ConfigError(f"{path}:{line}: the anchor at {dotted(where)} refers to itself or grows without end")
    lines.setdefault(where, line)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(loader, path, item, (*where, index), lines, (*ancestors, id(node)))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(
                    f"{path}:{key_line}: a key {f'of {dotted(where)} ' if where else ''}is {kind_of(key)}; "
                    "keys are text",
                    hint="put it in quotes",
                )
            if key in seen:
                raise ConfigError(
                    f"{path}:{key_line}: {dotted((*where, key))} is given twice, first on line {seen[key]}"
                )
            seen[key] = key_line
            lines[(*where, key)] = key_line
            _walk(loader, path, value_node, (*where, key), lines, (*ancestors, id(node)))


def _interpolate(value: Any, where: KeyPath, text: ConfigText, env: Mapping[str, str]) -> Any:
    if isinstance(value, str) and "$" in value:
        text.interpolated.add(where)
        try:
            return _DOLLAR.sub(lambda match: _replace(match, where, text, env), value)
        except ConfigError as error:
            text.problems[where] = error
            return value
    if isinstance(value, dict):
        return {key: _interpolate(item, (*where, key), text, env) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, (*where, index), text, env) for index, item in enumerate(value)]
    return value


def _replace(match: re.Match[str], where: KeyPath, text: ConfigText, env: Mapping[str, str]) -> str:
    if match["escaped"]:
        return "$"
    place = f"{text.at(where)}: {dotted(where)}"
    inside = match["inside"]
    if not match["closed"]:
        raise ConfigError(f"{place}: a ${{ without its }}", hint="write $$ for a dollar sign")
    if inside.startswith("file:"):
        return _file_text(text.path.parent / inside.removeprefix("file:"), place)
    variable = _VARIABLE.fullmatch(inside)
    if variable is None:
        raise ConfigError(
            f"{place}: a ${{...}} that is neither ${{NAME}}, ${{NAME:-default}} nor ${{file:PATH}}",
            hint="write $$ for a dollar sign",
        )
    name, default = variable["name"], variable["default"]
    if (found := env.get(name)) is None or (not found and default is not None):
        found = default
    if found is None:
        raise ConfigError(
            f"{place}: environment variable {name} is not set", hint=f"set it, or write ${{{name}:-default}}"
        )
    return found


def _file_text(path: Path, place: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{place}: file {path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{place}: cannot read file {path}: {error.strerror}") from None
