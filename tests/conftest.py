"""Owns the services that tests share. They start in the background as soon as it is known which tests will run.

A service that cannot run on this machine ends the test run with the command that gets it; nothing is skipped.
``TEST_KAFKA_BOOTSTRAP``, ``TEST_REGISTRY_URL``, ``TEST_POSTGRES_DSN``, ``TEST_MARIADB_URL`` and ``TEST_REDIS_URL`` name
servers that are already there (``make test`` does not use them).
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import pytest

from producer.embedded import EmbeddedKafka, free_port
from tests.services import databases
from tests.services.databases import MariaDB, Postgres, Redis
from tests.services.proxy import Proxy
from tests.services.registry import Registry


class Service(Protocol):
    def start(self) -> None: ...
    def close(self) -> None: ...


_MAKERS: Mapping[str, Callable[[], Service]] = {
    "kafka": EmbeddedKafka,
    "registry": Registry,
    "postgres": Postgres,
    "mariadb": MariaDB,
    "redis": Redis,
}
_GIVEN = {
    "kafka_bootstrap": "TEST_KAFKA_BOOTSTRAP",
    "registry_url": "TEST_REGISTRY_URL",
    "postgres_dsn": "TEST_POSTGRES_DSN",
    "mariadb_url": "TEST_MARIADB_URL",
    "redis_url": "TEST_REDIS_URL",
}


class Services:
    """Starts each service at most once, in a thread of its own; `get` waits for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(len(_MAKERS), thread_name_prefix="service")
        self._started: dict[str, Future[Service]] = {}

    def begin(self, name: str) -> Future[Service]:
        if name not in self._started:
            self._started[name] = self._pool.submit(self._start, name)
        return self._started[name]

    def get(self, name: str) -> Any:
        return self.begin(name).result(180)

    def close(self) -> None:
        for future in self._started.values():
            if future.exception(180) is None:
                self._pool.submit(future.result().close)
        self._pool.shutdown(wait=True)

    @staticmethod
    def _start(name: str) -> Service:
        service = _MAKERS[name]()
        try:
            service.start()
        except BaseException:
            service.close()
            raise
        return service


_SERVICES = pytest.StashKey[Services]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SERVICES] = Services()


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    used = {name for item in session.items if isinstance(item, pytest.Function) for name in item.fixturenames}
    wanted = {
        service
        for service in _MAKERS
        if any(fixture == service or (fixture.startswith(f"{service}_") and not _given(fixture)) for fixture in used)
    }
    lacking = {name: package for name, package in databases.missing().items() if name in wanted}
    if lacking:
        packages = " ".join(sorted(lacking.values()))
        raise pytest.UsageError(f"tests need {packages}: apt-get install -y --no-install-recommends {packages}")
    for name in sorted(wanted):
        session.config.stash[_SERVICES].begin(name)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_SERVICES].close()


def _given(fixture: str) -> str:
    return os.environ.get(_GIVEN.get(fixture, ""), "")


@pytest.fixture(scope="session")
def services(pytestconfig: pytest.Config) -> Services:
    return pytestconfig.stash[_SERVICES]


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses: for topics, groups, subjects, tables."""
    return _name(request.node.name)


def _name(text: str) -> str:
    return f"{re.sub('[^a-z0-9]+', '_', text.lower()).strip('_')[:30]}_{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def kafka(services: Services) -> EmbeddedKafka:
    """The broker of all tests: not to be stopped; see `own_kafka`."""
    broker: EmbeddedKafka = services.get("kafka")
    return broker


@pytest.fixture(scope="session")
def kafka_bootstrap(services: Services) -> str:
    return _given("kafka_bootstrap") or str(services.get("kafka").bootstrap)


@pytest.fixture
def own_kafka() -> Iterator[Callable[..., EmbeddedKafka]]:
    """Makes brokers (started, arguments as of `EmbeddedKafka`) that the test may stop, kill, pause and start again."""
    with contextlib.ExitStack() as stack:

        def make(**arguments: Any) -> EmbeddedKafka:
            return stack.enter_context(EmbeddedKafka(**arguments))

        yield make


@pytest.fixture
def proxied_kafka(own_kafka: Callable[..., EmbeddedKafka]) -> Iterator[tuple[EmbeddedKafka, Proxy]]:
    """A broker of the test's own, and the proxy by which clients reach it: their bootstrap is ``proxy.address``."""
    port = free_port()
    with Proxy(port) as proxy:
        yield own_kafka(via=(port, proxy.port)), proxy


@pytest.fixture
def make_proxy() -> Iterator[Callable[[int], Proxy]]:
    """Makes proxies in front of a port of this machine."""
    with contextlib.ExitStack() as stack:

        def make(upstream_port: int) -> Proxy:
            return stack.enter_context(Proxy(upstream_port))

        yield make


@pytest.fixture(scope="session")
def registry_url(services: Services) -> str:
    """The Confluent-compatible base URL; the compatibility is BACKWARD."""
    return _given("registry_url") or str(services.get("registry").url)


@pytest.fixture(scope="session")
def postgres(services: Services) -> Postgres:
    """The server of all tests: not to be stopped; see `own_postgres`."""
    server: Postgres = services.get("postgres")
    return server


@pytest.fixture
def own_postgres() -> Iterator[Callable[..., Postgres]]:
    """Makes servers (started, arguments are settings) that the test may stop, kill and start again."""
    with contextlib.ExitStack() as stack:

        def make(*settings: str) -> Postgres:
            server = Postgres(*settings)
            stack.callback(server.close)
            server.start()
            return server

        yield make


@pytest.fixture(scope="module")
def postgres_dsn(request: pytest.FixtureRequest, services: Services) -> Iterator[str]:
    """An empty database for the test module."""
    from adbc_driver_postgresql import dbapi

    given = _given("postgres_dsn")
    name = _name(request.module.__name__.rpartition(".")[2])
    admin = given or services.get("postgres").dsn()

    def run(statement: str) -> None:
        with dbapi.connect(admin, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    run(f'CREATE DATABASE "{name}"')
    yield f"{admin.rpartition('/')[0]}/{name}"
    run(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="module")
def mariadb_url(request: pytest.FixtureRequest, services: Services) -> Iterator[str]:
    """An empty database for the test module: ``mysql://user:password@host:port/database``."""
    from urllib.parse import urlsplit

    import pymysql

    name = _name(request.module.__name__.rpartition(".")[2])
    admin = urlsplit(_given("mariadb_url") or services.get("mariadb").url())

    def run(statement: str) -> None:
        with (
            contextlib.closing(
                pymysql.connect(
                    host=admin.hostname, port=admin.port or 3306, user=admin.username, password=admin.password or ""
                )
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)

    run(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
    yield admin._replace(path=f"/{name}").geturl()
    run(f"DROP DATABASE `{name}`")


_redis_databases = iter(range(1000))


@pytest.fixture(scope="module")
def redis_url(services: Services) -> str:
    """An empty numbered database for the test module."""
    return _given("redis_url") or str(services.get("redis").url(next(_redis_databases)))
