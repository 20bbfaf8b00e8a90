"""Owns the configuration of transforms: one model for each, told apart by the one key that says what it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, SecretStr, Tag, model_validator

from producer.config.base import Model
from producer.config.explain import nearest
from producer.config.zone import ZoneName

MIN_SALT_LENGTH = 8


class RenameConfig(Model):
    rename: Mapping[str, str] = Field(min_length=1, description="old name: new name")


class DropConfig(Model):
    drop: tuple[str, ...] = Field(min_length=1, description="columns; one of the key stays in the record's key")


class ConstantConfig(Model):
    constant: Mapping[str, bool | int | float | str] = Field(min_length=1, description="new column: its value")


class MaskConfig(Model):
    """With `salt` by HMAC-SHA-256, in hex, so that equal values stay equal; with `with` all by the same text."""

    mask: tuple[str, ...] = Field(min_length=1, description="columns; null stays null")
    salt: SecretStr | None = Field(default=None, description=f"a secret of at least {MIN_SALT_LENGTH} characters")
    text: str | None = Field(default=None, alias="with", description="what stands in the place of every value")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.salt is None) == (self.text is None):
            raise ValueError("a mask needs one of salt (values are hashed) and with (values are replaced)")
        if self.salt is not None and len(self.salt.get_secret_value()) < MIN_SALT_LENGTH:
            raise ValueError(f"salt is too short to hide anything; give it at least {MIN_SALT_LENGTH} characters")
        return self


class CastConfig(Model):
    cast: Mapping[str, str] = Field(
        min_length=1,
        description="column: boolean, int, long, float, double, string, bytes, date, timestamp, local_timestamp or "
        "decimal(precision,scale)",
    )


class ToUtcConfig(Model):
    to_utc: tuple[str, ...] = Field(min_length=1, description="timestamp columns")
    zone: ZoneName = Field(default="UTC", description="that in which timestamps without a zone were written")


_TRANSFORMS: Mapping[str, type[Model]] = {
    "rename": RenameConfig,
    "drop": DropConfig,
    "constant": ConstantConfig,
    "mask": MaskConfig,
    "cast": CastConfig,
    "to_utc": ToUtcConfig,
}


def _which_transform(value: Any) -> str:
    """The one key of a transform that says what it does."""
    if isinstance(value, BaseModel):
        return next(name for name, model in _TRANSFORMS.items() if isinstance(value, model))
    if not isinstance(value, Mapping):
        raise ValueError(f"a transform is a mapping with one of: {', '.join(_TRANSFORMS)}")
    named = [name for name in _TRANSFORMS if name in value]
    if len(named) == 1:
        return named[0]
    if named:
        raise ValueError(f"{' and '.join(named)} are two transforms; give each an entry of its own, in their order")
    first = str(next(iter(value), ""))
    raise ValueError(f"{first!r} is not a transform; valid: {', '.join(_TRANSFORMS)}{nearest(first, _TRANSFORMS)}")


def _is_transform(value: Any) -> Any:
    _which_transform(value)
    return value


TransformConfig = Annotated[
    Annotated[RenameConfig, Tag("transform rename")]
    | Annotated[DropConfig, Tag("transform drop")]
    | Annotated[ConstantConfig, Tag("transform constant")]
    | Annotated[MaskConfig, Tag("transform mask")]
    | Annotated[CastConfig, Tag("transform cast")]
    | Annotated[ToUtcConfig, Tag("transform to_utc")],
    Discriminator(lambda value: f"transform {_which_transform(value)}"),
    BeforeValidator(_is_transform),
]
