"""Owns the question whether the compiled kernel is there."""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: The module ``producer.encoding._kernel``, or None where it was not built: the extension is optional.
kernel: Any
try:
    kernel = import_module("producer.encoding._kernel")
except ImportError:
    kernel = None
