"""Owns the image that these tests run, built once; what is missing ends the run with how to get it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.container import base
from tests.container.engine import Engine
from tests.services import tools

IMAGE = "localhost/streaming-producer:test"


@pytest.fixture(scope="session")
def helm() -> str:
    return tools.path("helm")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    if shutil.which("podman") is None or not base.archive().exists():
        raise pytest.UsageError("these tests need podman and a base image: python -m tests.container")
    made = Engine()
    try:
        made.build(IMAGE)
        yield made
    finally:
        made.close()
