"""Owns how a value that a configuration model refused is told to a person, in one line and without the value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from producer.config.text import ConfigText, KeyPath, dotted, kind_of
from producer.errors import ConfigError

_VALID = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "url_parsing": "a URL",
}
_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the known name closest to `word`, or '' where none is near."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


class Contradictions(ValueError):
    """What a model's rules between its keys refuse: where in the model, and why."""

    def __init__(self, found: Sequence[tuple[KeyPath, str]]) -> None:
        super().__init__("; ".join(problem for _, problem in found))
        self.found = tuple(found)


def explain(
    text: ConfigText, model: type[BaseModel], error: ValidationError, prefix: KeyPath = ()
) -> list[ConfigError]:
    """Everything that is wrong, each with its line."""
    details = error.errors(include_url=False, include_context=True)
    by_path: dict[KeyPath, list[Any]] = {}
    for detail in details:
        by_path.setdefault(_path_in(text.data, prefix, detail), []).append(detail)
    for path in [p for p, found in by_path.items() if found[0]["type"] == "too_short"]:
        if any(other != path and other[: len(path)] == path for other in by_path):
            del by_path[path]  # pydantic counts a list's wrong members as not there
    for path in text.problems:
        by_path.pop(path, None)  # it is still as it stands in the file
    told = [problem for where, found in by_path.items() for problem in _told(text, model, where, prefix, found)]
    return [ConfigError(f"{text.at(where)}: {sentence}") for where, sentence in told]


def _told(
    text: ConfigText, model: type[BaseModel], where: KeyPath, prefix: KeyPath, details: Sequence[Any]
) -> Iterator[tuple[KeyPath, str]]:
    if details[0]["type"] != "value_error":
        yield where, _sentence(text, model, where, prefix, details)
        return
    if any(path[: len(where)] == where for path in text.problems):
        return  # it may be about what could not be put in
    problem = details[0]["ctx"]["error"]
    for inside, sentence in problem.found if isinstance(problem, Contradictions) else [((), str(problem))]:
        yield (*where, *inside), f"{dotted(where)}: {sentence}" if where else sentence


def _path_in(data: Any, prefix: KeyPath, detail: Any) -> KeyPath:
    """The key path of pydantic's `loc`, without the tags that it puts in for the members of a union."""
    loc: Sequence[str | int] = detail["loc"]
    for part in prefix:
        data = data[part]
    path = prefix
    for index, part in enumerate(loc):
        inside = isinstance(data, dict) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data, path = data[part], (*path, part)
        elif index == len(loc) - 1 and detail["type"] == "missing":
            path = (*path, part)
    return path


def _sentence(text: ConfigText, model: type[BaseModel], where: KeyPath, prefix: KeyPath, details: Sequence[Any]) -> str:
    first = details[0]
    name = dotted(where)
    match first["type"]:
        case "extra_forbidden":
            known = _known_names(model, where[len(prefix) : -1])
            offer = nearest(str(where[-1]), known) or f"; valid: {', '.join(known)}"
            return f"{name} is not a known key{offer}"
        case "missing":
            return f"{name} is missing"
        case "literal_error" | "union_tag_invalid" | "union_tag_not_found":
            ctx = first.get("ctx", {})
            value = _value(text.data, where)
            if first["type"] != "literal_error":
                tags = [tag.strip("'\" ") for tag in str(ctx.get("expected_tags", "")).split(",") if tag]
                if not tags:
                    return f"{name}.type is missing"
                name, valid = f"{name}.type", tags
                value = value.get("type") if isinstance(value, dict) else value
            else:
                valid = [str(choice).strip("'") for choice in str(ctx["expected"]).replace(" or ", ", ").split(", ")]
            if {where, (*where, "type")} & text.interpolated or not isinstance(value, str) or len(value) > 40:
                return f"{name} is {kind_of(value)}; valid: {', '.join(valid)}"
            return f"{name} is {value!r}; valid: {', '.join(valid)}" + nearest(value, valid)
        case "too_short":
            return f"{name} is empty; it needs at least {first['ctx']['min_length']} entry"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            ((limit, number),) = first["ctx"].items()
            return f"{name} is out of range; valid: {_LIMITS[limit]} {number:g}"
    kind = kind_of(_value(text.data, where))
    choices = list(dict.fromkeys(_VALID[d["type"]] for d in details if d["type"] in _VALID))
    if choices:
        quoted = "; put it in quotes" if choices == ["text"] and kind not in {"a mapping", "a list", "empty"} else ""
        return f"{name} is {kind}; valid: {' or '.join(choices)}{quoted}"
    return f"{name} is {kind}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _value(data: Any, where: KeyPath) -> Any:
    for part in where:
        data = data.get(part) if isinstance(data, dict) else data[part]
    return data


def _known_names(model: type[BaseModel], where: KeyPath) -> list[str]:
    """The names of the keys that may stand at a key path of `model`."""
    models = [model]
    for part in where:
        annotations = [
            field.annotation
            for owner in models
            for name, field in owner.model_fields.items()
            if isinstance(part, int) or part in (name, field.alias)
        ]
        models = models if isinstance(part, int) else [m for annotation in annotations for m in _models(annotation)]
    return [field.alias or name for owner in models for name, field in owner.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for inner in get_args(annotation) for model in _models(inner)]
