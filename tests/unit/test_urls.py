"""URLs: how they are read, and that no part of a password is in what is said of them, however it is written.

The passwords are written into the URL as they are, without percent-encoding: half of them move the borders of host,
path and query. Nothing listens where the URLs point to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from producer.checkpoints.postgres import PostgresCheckpointStore
from producer.checkpoints.redis import RedisCheckpointStore
from producer.cli import main
from producer.config import Config, KafkaConfig, RateLimitConfig, RegistryConfig, load_config
from producer.config.servers import LineageConfig
from producer.coordination.redis_bucket import RedisTokenBucket
from producer.encoding.registry import RegistryClient
from producer.errors import ConfigError, ProducerError
from producer.lineage import sender
from producer.logs import HIDDEN, redactor
from producer.postgres_urls import for_asyncpg, for_libpq, read
from producer.sources.iptvportal.client import AsyncIPTVPortalClient
from producer.sources.sql import SqlConfig, SqlSource
from producer.urls import parse, passwords

SEPARATORS = "@/#?%:&=+ \\[],;'\"$é@@/@?=&"
#: Parts of passwords, which must not be told.
PARTS = ("Tr0ub4dor", "hunter2x", "97531")
AWKWARD = [
    *(f"Tr0ub4dor{sign}hunter2x" for sign in (*SEPARATORS, "@@", "/@", "?a=", "%zz", "%40", "#@", "://")),
    *(f"97531{sign}hunter2x" for sign in "@/#?,"),
    *(f"{sign}hunter2x" for sign in "@/#?:%["),
    *(f"hunter2x{sign}" for sign in "@/#?:%["),
    "97531?user=hunter2x",
    "Tr0ub4dor@hunter2x:97531",
]


def no_part_in(text: str) -> None:
    assert not [part for part in PARTS if part in text], text


@pytest.mark.parametrize("password", AWKWARD)
@pytest.mark.parametrize("host", ["127.0.0.1:1", "127.0.0.1", "[::1]:1"])
def test_a_password_is_read_whole_or_not_at_all(password: str, host: str) -> None:
    try:
        found = parse(f"postgresql://u:{password}@{host}/db", "the url", example="postgresql://host", several=True)
    except ConfigError as error:
        no_part_in(str(error))
    else:
        assert found.password == unquote(password)
        assert found.host in ("127.0.0.1", "::1")
        assert parse(f"x://{found.login}{found.authority}/", "", example="").password == found.password


# --- every place where a URL is taken ---------------------------------------------------------------------------------


def config(**settings: Any) -> Config:
    return Config.model_validate(
        {"sources": {"db": {"type": "sql", "url": "sqlite://"}}, **settings}
        | {"streams": [{"source": "db", "table": "t", "topic": "t"}]}
    )


def sql(scheme: str) -> Callable[[str], Any]:
    async def connect(login: str) -> None:
        settings = SqlConfig(url=SecretStr(f"{scheme}://{login}@127.0.0.1:1/db"), connect_timeout_s=2)
        source = SqlSource(settings)
        try:
            await source.start()
        finally:
            await source.close()

    return connect


async def postgres_store(login: str) -> None:
    url = f"postgresql://{login}@127.0.0.1:1/db"
    await PostgresCheckpointStore(config(checkpoints={"type": "postgres", "url": url})).start()


async def redis_store(login: str) -> None:
    await RedisCheckpointStore(config(checkpoints={"type": "redis", "url": f"redis://{login}@127.0.0.1:1/0"})).start()


async def bucket(login: str) -> None:
    settings = RateLimitConfig(type="redis", url=SecretStr(f"redis://{login}@127.0.0.1:1"), rate=1)
    await RedisTokenBucket(settings).acquire(1)


async def registry(login: str) -> None:
    await RegistryClient(RegistryConfig(url=f"http://{login}@127.0.0.1:1", timeout_s=2)).start()


async def lineage(login: str) -> None:
    await asyncio.to_thread(sender(LineageConfig(url=f"http://{login}@127.0.0.1:1/api")), {})


async def portal(login: str) -> None:
    client = AsyncIPTVPortalClient(url=f"http://{login}@127.0.0.1:1", username="u", password="p", timeout_s=2)
    await client.start()


async def kafka(login: str) -> None:
    KafkaConfig(bootstrap_servers=f"SASL://{login}@127.0.0.1:1")


PLACES: Mapping[str, Callable[[str], Any]] = {
    "sources.postgresql": sql("postgresql"),
    "sources.mysql": sql("mysql"),
    "sources.mariadb": sql("mariadb"),
    "checkpoints.postgres": postgres_store,
    "checkpoints.redis": redis_store,
    "rate_limit": bucket,
    "schema_registry": registry,
    "lineage": lineage,
    "sources.iptvportal": portal,
    "kafka": kafka,
}


@pytest.mark.parametrize("place", PLACES)
async def test_no_part_of_a_password_is_told_by_who_connects(place: str, caplog: pytest.LogCaptureFixture) -> None:
    for password in AWKWARD:
        with pytest.raises((ProducerError, OSError, ValidationError)) as caught:
            await PLACES[place](f"u:{password}")
        no_part_in(str(caught.value))
    no_part_in(caplog.text)


#: Of the passwords, one for each way in which the borders are moved.
FOR_COMMANDS = [
    "Tr0ub4dor@hunter2x",
    "97531/hunter2x",
    "Tr0ub4dor?a=hunter2x",
    "Tr0ub4dor#hunter2x",
    "Tr0ub4dor%hunter2x",
]


def written(folder: Path, place: str, password: str) -> Path:
    login = f"u:{password}".replace("$", "$$")
    document: dict[str, Any] = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1", "connect_timeout_s": 0.1},
        "http": {"port": 0},
        "sources": {"db": {"type": "sql", "url": "sqlite:///db", "connect_timeout_s": 2}},
        "streams": [{"source": "db", "table": "t", "topic": "t", "name": "s"}],
    }
    match place:
        case "source":
            document["sources"]["db"]["url"] = f"postgresql://{login}@127.0.0.1:1/db"
        case "store":
            document["checkpoints"] = {"type": "postgres", "url": f"postgresql://{login}@127.0.0.1:1/db"}
        case "redis":
            document["checkpoints"] = {"type": "redis", "url": f"redis://{login}@127.0.0.1:1"}
        case "registry":
            document["schema_registry"] = {"url": f"http://{login}@127.0.0.1:1", "timeout_s": 1}
        case "lineage":
            document["lineage"] = {"url": f"http://{login}@127.0.0.1:1/api"}
        case "kafka":
            document["kafka"]["bootstrap_servers"] = f"SASL_SSL://{login}@127.0.0.1:1"
    path = folder / "producer.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize("place", ["source", "store", "redis", "registry", "lineage", "kafka"])
def test_no_part_of_a_password_is_told_by_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    for password in FOR_COMMANDS:
        path = str(written(tmp_path, place, password))
        for command in (
            ["validate", path],
            ["validate", path, "--json"],
            ["plan", path],
            ["run", path, "--once"],
            ["checkpoint", "show", path, "--json"],
            ["schema", "show", path],
        ):
            if command[0] in ("run", "plan") and place in ("lineage", "redis", "store", "registry"):
                continue  # they begin with the broker, and wait for it
            with contextlib.suppress(SystemExit):
                main(command)
            told = capsys.readouterr()
            no_part_in(told.out + told.err)
            assert place != "source" or "the source's url: " in told.out + told.err or command[0] == "checkpoint"


def test_no_part_of_a_password_is_told_of_a_url_as_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    for password in AWKWARD:
        for command in (
            ["status", f"http://u:{password}@127.0.0.1:1"],
            ["pause", f"http://u:{password}@127.0.0.1:1", "s"],
            ["dump", "--source", f"postgresql://u:{password}@127.0.0.1:1/db", "--table", "t"],
            ["dump", "--source", f"u:{password}@127.0.0.1:1/db", "--table", "t"],
        ):
            with contextlib.suppress(SystemExit):
                main(command)
            told = capsys.readouterr()
            no_part_in(told.out + told.err)


@pytest.mark.parametrize("password", AWKWARD)
def test_a_log_hides_each_part_of_a_password(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://u:{password}@127.0.0.1/db"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://u:{password}@127.0.0.1:4318")
    for redact in (redactor(SqlConfig(url=SecretStr(url))), redactor(RegistryConfig(url=url)), redactor(None)):
        for part in filter(None, passwords(url)):
            if len(part) >= 4:
                assert part not in redact(f"could not translate host name {part!r}")
        assert HIDDEN in redact(f"connecting to {url}")


# --- PostgreSQL's URLs ------------------------------------------------------------------------------------------------

#: A URL, where it leads, and what asyncpg is given.
FORMS = [
    ("postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write", "h1:5432,h2:5433", None),
    ("postgres://h1,h2/db", "h1:5432,h2:5432", "postgresql://h1:5432,h2:5432/db"),
    ("postgresql+asyncpg://u@h/db", "h:5432", "postgresql://u@h/db"),
    ("postgresql://[::1]:6543/db", "::1:6543", "postgresql://[::1]:6543/db"),
    ("postgresql://[2001:db8::1],h2:1/db", "2001:db8::1:5432,h2:1", "postgresql://[2001:db8::1]:5432,h2:1/db"),
    ("postgresql:///db?host=/run/pg&port=6543", "/run/pg:6543", "postgresql://%2Frun%2Fpg:6543/db"),
    ("postgresql://%2Frun%2Fpg/db", "/run/pg:5432", "postgresql://%2Frun%2Fpg/db"),
    ("postgresql:///db?host=h1,h2&port=1", "h1,h2:1", "postgresql://h1:1,h2:1/db"),
    ("postgresql:///db?host=h1,h2&port=1,2", "h1,h2:1,2", "postgresql://h1:1,h2:2/db"),
    ("postgresql://?service=shop", "the service 'shop'", "postgresql://?service=shop"),
    ("postgresql:///db", "the local socket:5432", "postgresql:///db"),
    ("postgresql://:6543/db", "localhost:6543", None),
    ("postgresql://u@/db", "the local socket:5432", "postgresql://u@/db"),
    ("postgresql://h/db?user=me@realm&password=a%40b", "h:5432", "postgresql://h/db?user=me%40realm&password=a%40b"),
    ("postgresql://h/db?sslmode=verify-full&sslrootcert=/ca.pem", "h:5432", None),
    ("postgresql://h/db?passfile=/p&connect_timeout=3&keepalives=1&gssencmode=disable", "h:5432", None),
    ("postgresql://h/db?options=-c%20statement_timeout%3D5s", "h:5432", None),
]


@pytest.mark.parametrize(("url", "where", "asyncpg"), FORMS)
def test_every_form_of_a_postgresql_url_is_read(url: str, where: str, asyncpg: str | None) -> None:
    found = read(url, "the url")
    again = read(for_libpq(found, {}), "the url")  # what libpq is given says the same
    assert (again.parameters, again.url.hosts, again.user) == (found.parameters, found.url.hosts, found.user)
    assert (found.where if found.url.host or not found.url.port else f"localhost:{found.url.port}") == where
    if asyncpg is not None:
        assert for_asyncpg(found, "the url") == asyncpg


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://h:99999/db", "host and port cannot be read"),
        ("postgresql://h:x/db", "host and port cannot be read"),
        ("postgresql://[::1/db", "host and port cannot be read"),
        ("postgresql://h/db?sslmod=require", "a parameter that is not known"),
        ("postgresql://h/db?sslmode", "parameters cannot be read"),
        ("postgresql://h/db?client_encoding=latin1", "client_encoding must be UTF8"),
        ("postgresql://h/db?replication=database", "replication is not supported"),
        ("postgresql://h/db#x", "a #"),
        ("host=h dbname=db", "a space"),
        ("mysql://h/db", "not a PostgreSQL URL"),
    ],
)
def test_a_postgresql_url_that_cannot_be_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="the url") as caught:
        read(url, "the url")
    assert reason in caught.value.message


@pytest.mark.parametrize(
    "asked",
    [
        "hostaddr=127.0.0.1",
        "require_auth=scram-sha-256",
        "channel_binding=require",
        "gssencmode=require",
        "load_balance_hosts=random",
        "sslrootcert=system",
        "sslcrldir=/c",
        "servicefile=/s",
    ],
)
def test_what_asyncpg_has_not_got_is_refused_by_name_for_the_store_and_notify(asked: str) -> None:
    url = f"postgresql://h/db?{asked}"
    with pytest.raises(ConfigError, match=rf"checkpoints\.url: the parameter '{asked.partition('=')[0]}'"):
        PostgresCheckpointStore(config(checkpoints={"type": "postgres", "url": url}))
    assert for_libpq(read(url, "the url"), {}).startswith("postgresql://h/db?")  # a source has it


def test_a_configuration_with_several_hosts_is_loaded(tmp_path: Path) -> None:
    url = "postgresql://u:p@h1:5432,h2:5432/db?target_session_attrs=read-write"
    document = {"sources": {"db": {"type": "sql", "url": url}}, "checkpoints": {"type": "postgres", "url": url}}
    document |= {"streams": [{"source": "db", "table": "t", "topic": "t"}]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document))
    found = load_config(tmp_path / "c.yaml")
    PostgresCheckpointStore(found)
    SqlSource(found.sources["db"])
