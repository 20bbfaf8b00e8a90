"""Owns the fixtures of the programs that these tests run. One that is missing ends the run with how to get it."""

from __future__ import annotations

import pytest

from tests.services import tools


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    used = {name for item in session.items if isinstance(item, pytest.Function) for name in item.fixturenames}
    lacking = {name: command for name, command in tools.missing().items() if name in used}
    if lacking:
        raise pytest.UsageError("; ".join(f"tests need {name}: {command}" for name, command in sorted(lacking.items())))


@pytest.fixture(scope="session")
def helm() -> str:
    return tools.path("helm")


@pytest.fixture(scope="session")
def trivy() -> str:
    return tools.path("trivy")


@pytest.fixture(scope="session")
def hadolint() -> str:
    return tools.path("hadolint")


@pytest.fixture(scope="session")
def prometheus() -> tuple[str, str]:
    """The server and promtool."""
    return tools.path("prometheus"), tools.path("promtool")
