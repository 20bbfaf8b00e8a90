"""Owns what the dialects' mappings to Arrow share: decimal types, and the report of a value that has no form."""

from __future__ import annotations

import pyarrow as pa

from producer.errors import ConfigError, EncodeError


class Unreadable(Exception):
    """A value without a form in its column's type: its row in the page, and why."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row
        self.reason = reason

    def error(self, column: str, key: str) -> EncodeError:
        return EncodeError(f"column {column!r}, row with key {key}: {self.reason}", key=key, field=column)


def decimal_type(precision: int, scale: int) -> pa.DataType:
    """The smallest Arrow type of `precision` digits, `scale` of them after the point; text where none has so many."""
    if precision <= 38:
        return pa.decimal128(max(precision, 1), scale)
    return pa.decimal256(precision, scale) if precision <= 76 else pa.string()


def configured_decimal(text: str) -> pa.DataType:
    """The type that ``decimal: "38,9"`` asks for; ConfigError for what is not a precision and a scale."""
    precision, _, scale = text.partition(",")
    if precision.strip().isdigit() and scale.strip().isdigit() and 0 <= int(scale) <= int(precision) <= 76:
        return decimal_type(int(precision), int(scale))
    raise ConfigError(f"decimal: {text!r} is not a precision and scale", hint='write "38,9", or string')
