"""Owns the claims about certificates of clients, SCRAM, OAUTHBEARER and ACLs, against servers that insist on them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import confluent_kafka.admin
import pytest
from pydantic import SecretStr

from producer.checkpoints.postgres import PostgresCheckpointStore
from producer.config import Config, KafkaConfig, RegistryConfig, StreamConfig
from producer.embedded import EmbeddedKafka, free_port
from producer.encoding.registry import RegistryClient
from producer.errors import AuthenticationError, ConfigError, ProducerError
from producer.sinks.kafka import KafkaSink
from producer.sources.sql import SqlConfig, SqlSource
from tests.integration.kafka_rows import TextEncoder, page, read_topic, stream
from tests.services.certificates import Authority, Certificate
from tests.services.databases import Postgres
from tests.services.process import account, owned_folder

admin: Any = confluent_kafka.admin  # untyped
PASSWORD = "hunter2-secret"


@pytest.fixture(autouse=True)
async def closed_sockets() -> AsyncIterator[None]:
    """Ends the loop when the last TLS connection has been closed: aiokafka does not wait for that."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    before = len(selector.get_map())
    yield
    async with asyncio.timeout(10):
        while len(selector.get_map()) > before:
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A client whose certificate nobody here trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "elsewhere").issue("producer")


# --- Kafka ----------------------------------------------------------------------


@dataclass(frozen=True)
class Broker:
    """`open` is a plain listener for administration, `address` the secured one."""

    open: str
    address: str
    authority: Authority

    def config(self, **changes: Any) -> KafkaConfig:
        settings = {
            "bootstrap_servers": self.address,
            "ssl_cafile": str(self.authority.cafile),
            "connect_timeout_s": 10,
        }
        return KafkaConfig.model_validate(settings | changes)

    def administer(self, ask: Callable[[Any], dict[Any, Any]]) -> None:
        """Asks, and waits for all that has been promised."""
        client = admin.AdminClient({"bootstrap.servers": self.open})
        for done in ask(client).values():
            done.result(20)

    def allow(self, principal: str, topic: str, *operations: str) -> None:
        bindings = [
            admin.AclBinding(
                admin.ResourceType.TOPIC,
                topic,
                admin.ResourcePatternType.LITERAL,
                principal,
                "*",
                admin.AclOperation[operation],
                admin.AclPermissionType.ALLOW,
            )
            for operation in operations
        ]
        self.administer(lambda client: client.create_acls(bindings))


def secured(authority: Authority, protocol: str, **settings: str) -> contextlib.AbstractContextManager[Broker]:
    server = authority.issue("broker")

    @contextlib.contextmanager
    def started() -> Iterator[Broker]:
        port = free_port()
        config = {
            "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,PROXY:{protocol},CONTROLLER:PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": server.certificate.replace("\n", "\\n"),
            "ssl.keystore.key": server.key.replace("\n", "\\n"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": authority.pem.replace("\n", "\\n"),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            **settings,
        }
        with EmbeddedKafka(via=(port, port), config=config) as broker:
            yield Broker(broker.bootstrap, f"127.0.0.1:{port}", authority)

    return started()


@pytest.fixture(scope="module")
def mutual(authority: Authority) -> Iterator[Broker]:
    """A broker that knows its clients by their certificates."""
    with secured(authority, "SSL", **{"ssl.client.auth": "required"}) as broker:
        yield broker


@pytest.fixture(scope="module")
def sasl(authority: Authority) -> Iterator[Broker]:
    """A broker that takes SCRAM (user `producer`) and OAUTHBEARER (tokens that are not signed) over TLS."""
    modules = "org.apache.kafka.common.security"
    jaas = {
        "scram-sha-256": f"{modules}.scram.ScramLoginModule required;",
        "scram-sha-512": f"{modules}.scram.ScramLoginModule required;",
        "oauthbearer": f"{modules}.oauthbearer.OAuthBearerLoginModule required;",
    }
    settings = {f"listener.name.proxy.{mechanism}.sasl.jaas.config": text for mechanism, text in jaas.items()}
    mechanisms = {"sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER"}
    with secured(authority, "SASL_SSL", **settings, **mechanisms) as broker:
        for kind in (admin.ScramMechanism.SCRAM_SHA_256, admin.ScramMechanism.SCRAM_SHA_512):
            how = admin.ScramCredentialInfo(kind, 4096)
            user = admin.UserScramCredentialUpsertion("producer", how, PASSWORD.encode())
            broker.administer(lambda client: client.alter_user_scram_credentials([user]))  # noqa: B023
        yield broker


def token(subject: str, lifetime_s: int = 600) -> str:
    """An access token as the broker's validator for tests takes it: not signed."""
    now = int(time.time())
    parts = ({"alg": "none"}, {"sub": subject, "iat": now, "exp": now + lifetime_s, "scope": "kafka"})
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts) + "."


async def written(broker: Broker, config: KafkaConfig, topic: str) -> int:
    """Writes a page by way of `config`; how many records are then on the topic."""
    s = stream(topic)
    sink = KafkaSink(config, "secured", "run")
    try:
        await sink.start()
        await sink.ensure_topic(topic)
        writer = sink.writer(s, TextEncoder())
        await asyncio.wait_for(await writer.submit(writer.prepare(page(1, 100))), 30)
    finally:
        await sink.close()
    return len(await read_topic(broker.open, topic))


def make_topic(broker: Broker, topic: str) -> None:
    broker.administer(lambda client: client.create_topics([admin.NewTopic(topic, 1, 1)]))


def certificate_of(client: Certificate) -> dict[str, Any]:
    return {"security_protocol": "SSL", "ssl_certfile": str(client.certfile), "ssl_keyfile": str(client.keyfile)}


async def test_the_broker_knows_the_client_by_its_certificate(mutual: Broker, unique: str) -> None:
    config = mutual.config(**certificate_of(mutual.authority.issue("producer")))
    make_topic(mutual, unique)
    mutual.allow("User:CN=producer", unique, "WRITE", "DESCRIBE")
    assert await written(mutual, config, unique) == 100


@pytest.mark.parametrize("shown", ["nothing", "a stranger's"])
async def test_without_a_certificate_it_trusts_the_broker_is_not_reached(
    mutual: Broker, stranger: Certificate, shown: str
) -> None:
    how = {"security_protocol": "SSL"} if shown == "nothing" else certificate_of(stranger)
    with pytest.raises(ProducerError, match=mutual.address) as caught:
        await KafkaSink(mutual.config(**how), "secured", "run").start()
    assert "PRIVATE" not in str(caught.value)


async def test_a_certificate_without_write_is_told_so_by_topic(mutual: Broker, unique: str) -> None:
    config = mutual.config(**certificate_of(mutual.authority.issue("reader")))
    make_topic(mutual, unique)
    mutual.allow("User:CN=reader", unique, "DESCRIBE")
    with pytest.raises(AuthenticationError, match=rf"'{unique}': not authorised \(grant"):
        await written(mutual, config, unique)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_scram_lets_in_who_knows_the_password_and_no_one_else(sasl: Broker, unique: str, mechanism: str) -> None:
    how = {"security_protocol": "SASL_SSL", "sasl_mechanism": mechanism, "sasl_username": "producer"}
    make_topic(sasl, unique)
    sasl.allow("User:producer", unique, "WRITE", "DESCRIBE")
    assert await written(sasl, sasl.config(**how, sasl_password=PASSWORD), unique) == 100
    with pytest.raises(AuthenticationError, match="the credentials were refused") as caught:
        await KafkaSink(sasl.config(**how, sasl_password="wrong-secret"), "secured", "run").start()
    assert "wrong-secret" not in str(caught.value)


async def test_scram_without_write_is_told_so_by_topic(sasl: Broker, unique: str) -> None:
    how = {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "producer"}
    make_topic(sasl, unique)
    sasl.allow("User:producer", unique, "DESCRIBE")
    with pytest.raises(AuthenticationError, match=rf"'{unique}': not authorised \(grant"):
        await written(sasl, sasl.config(**how, sasl_password=PASSWORD), unique)


async def test_oauthbearer_lets_in_by_a_token_and_without_write_tells_the_topic(sasl: Broker, unique: str) -> None:
    config = sasl.config(security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER", sasl_password=token("robot"))
    make_topic(sasl, unique)
    sasl.allow("User:robot", unique, "DESCRIBE")
    with pytest.raises(AuthenticationError, match=rf"'{unique}': not authorised \(grant"):
        await written(sasl, config, unique)
    sasl.allow("User:robot", unique, "WRITE")
    assert await written(sasl, config, unique) == 100


async def test_a_token_in_a_file_is_read_anew_for_each_connection(sasl: Broker, unique: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    config = sasl.config(security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER", sasl_token_file=str(file))
    make_topic(sasl, unique)
    sasl.allow("User:robot", unique, "WRITE", "DESCRIBE")
    file.write_text(old := token("robot", lifetime_s=-300))
    with pytest.raises(ProducerError, match="and the access token valid") as caught:
        await written(sasl, config, unique)
    assert old not in str(caught.value)
    file.write_text(token("robot") + "\n")
    assert await written(sasl, config, unique) == 100


async def test_oauthbearer_without_a_token_says_where_it_belongs(sasl: Broker) -> None:
    config = sasl.config(security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER")
    with pytest.raises(ConfigError, match="sasl_token_file"):
        await KafkaSink(config, "secured", "run").start()


# --- PostgreSQL ----------------------------------------------------------------------


@pytest.fixture
def certified_postgres(own_postgres: Callable[..., Postgres], authority: Authority) -> Iterator[Postgres]:
    """A server where `reader` is known by a certificate only."""
    user = account("postgres")
    folder = owned_folder("certificates-", user)
    server = authority.issue("database")
    for file in (server.certfile, server.keyfile, authority.cafile):
        shutil.copy(file, folder)
        if user:
            shutil.chown(folder / file.name, user, user)
    (folder / server.keyfile.name).chmod(0o600)
    hba = folder / "hba.conf"
    hba.write_text("host all postgres 127.0.0.1/32 trust\nhostssl all reader 127.0.0.1/32 cert\n")
    files = {"ssl_cert_file": server.certfile, "ssl_key_file": server.keyfile, "ssl_ca_file": authority.cafile}
    yield own_postgres("ssl=on", f"hba_file={hba}", *(f"{key}={folder / path.name}" for key, path in files.items()))
    shutil.rmtree(folder)


def reader_url(server: Postgres, authority: Authority, client: Certificate | None) -> str:
    options = {"sslmode": "verify-full", "sslrootcert": str(authority.cafile)}
    if client is not None:
        options |= {"sslcert": str(client.certfile), "sslkey": str(client.keyfile)}
    query = "&".join(f"{key}={quote(value, safe='')}" for key, value in options.items())
    return f"postgresql://reader@127.0.0.1:{urlsplit(server.dsn()).port}/postgres?{query}"


async def test_postgresql_knows_source_and_store_by_their_certificate(
    certified_postgres: Postgres, authority: Authority, stranger: Certificate
) -> None:
    owner = await asyncpg.connect(certified_postgres.dsn(), ssl=False)
    await owner.execute(
        "CREATE ROLE reader LOGIN; CREATE TABLE events (id int PRIMARY KEY); INSERT INTO events VALUES (7)"
    )
    await owner.execute("GRANT SELECT ON events TO reader; GRANT CREATE ON SCHEMA public TO reader")
    await owner.close()
    table = StreamConfig.model_validate({"source": "shop", "table": "events"})
    url = reader_url(certified_postgres, authority, authority.issue("reader"))

    source = SqlSource(SqlConfig(url=SecretStr(url)))
    await source.start()
    assert (await source.describe(table)).key == ("id",)
    await source.close()
    store = PostgresCheckpointStore(
        Config.model_validate(
            {
                "sources": {"shop": {"type": "sql", "url": url}},
                "streams": [{"source": "shop", "table": "events"}],
                "checkpoints": {"type": "postgres", "url": url},
            }
        )
    )
    await store.start()
    assert await store.claim("events") == 1
    await store.close()

    for client in (None, stranger):
        refused = SqlSource(SqlConfig(url=SecretStr(reader_url(certified_postgres, authority, client))))
        with pytest.raises(AuthenticationError, match="check url in the source"):
            await refused.start()
        await refused.close()


# --- the registry ----------------------------------------------------------------------


@pytest.fixture
async def certified_registry(registry_url: str, authority: Authority) -> AsyncIterator[str]:
    """The registry behind a TLS server that asks for a certificate of the authority."""
    upstream = urlsplit(registry_url)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(upstream.hostname, upstream.port)
        await asyncio.gather(pipe(reader, ours), pipe(theirs, writer))

    context = authority.server_context(authority.issue("registry"))
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}{upstream.path}"


async def test_the_registry_is_reached_with_a_certificate_and_not_without(
    certified_registry: str, authority: Authority, stranger: Certificate, unique: str
) -> None:
    def client(certificate: Certificate | None, cafile: Path | None = authority.cafile) -> RegistryClient:
        return RegistryClient(
            RegistryConfig(
                url=certified_registry,
                ssl_cafile=None if cafile is None else str(cafile),
                ssl_certfile=None if certificate is None else str(certificate.certfile),
                ssl_keyfile=None if certificate is None else str(certificate.keyfile),
            )
        )

    ours = authority.issue("producer")
    good = client(ours)
    await good.start()
    schema = {"type": "record", "name": "A", "fields": [{"name": "a", "type": "long"}]}
    assert len(await good.register(unique, schema, is_key=False)) == 5
    await good.close()
    for refused in (client(None), client(stranger), client(ours, None)):
        with pytest.raises(ProducerError, match="the registry at"):
            await refused.start()
            await refused.register(unique, schema, is_key=False)
        await refused.close()
