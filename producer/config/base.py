"""Owns what all configuration models are made of: the strict base, and sizes in bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from producer.config.explain import Contradictions
from producer.config.text import KeyPath

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def parse_bytes(value: object) -> object:
    """``64MiB``, ``1MB`` or ``4096`` as a number of bytes; anything but text is left to the model."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or match["unit"].lower() not in _UNITS:
        raise ValueError("not a size; write bytes as a whole number, or with a unit: kB, MB, GB, KiB, MiB, GiB")
    return round(float(match["number"]) * _UNITS[match["unit"].lower()])


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1, description="bytes, or text such as 64MiB")]


class Model(BaseModel):
    """Base of every configuration model, the sources' own included: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_as_number(cls, data: Any) -> Any:
        """YAML's `yes` and `on` would pass as the number 1: something that no number can be stands in their place."""
        if not isinstance(data, dict):
            return data
        return {name: [] if cls._takes_number_only(name, value) else value for name, value in data.items()}

    @classmethod
    def _takes_number_only(cls, name: str, value: Any) -> bool:
        if not isinstance(value, bool) or name not in cls.model_fields:
            return False
        annotation = cls.model_fields[name].annotation
        kinds = set(get_args(annotation)) or {annotation}
        return bool(kinds & {int, float}) and bool not in kinds


class ConsistentModel(Model):
    """A model with rules between its keys: all that are broken are told together."""

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if found := list(self._contradictions()):
            raise Contradictions(found)
        return self

    def _contradictions(self) -> Iterator[tuple[KeyPath, str]]:
        """Where in the model a rule is broken, and what the rule is."""
        return iter(())
