"""Owns the claims about TLS, SASL and ACLs, against a broker that asks for them."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from producer.config import KafkaConfig
from producer.embedded import EmbeddedKafka, free_port
from producer.errors import AuthenticationError, ProducerError
from producer.kafka import ensure_topic
from producer.sinks.kafka import KafkaSink
from tests.integration.kafka_rows import TextEncoder, page, read_topic, stream


@dataclass(frozen=True)
class Secured:
    """A broker with a plain listener for administration (`open`), and one with TLS and SASL (`address`)."""

    open: str
    address: str
    cafile: Path

    def config(self, **changes: Any) -> KafkaConfig:
        settings = {
            "bootstrap_servers": self.address,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "reader",
            "sasl_password": "hunter2",
            "ssl_cafile": str(self.cafile),
            "connect_timeout_s": 10,
        }
        return KafkaConfig.model_validate(settings | changes)


def self_signed() -> tuple[str, str]:
    """A certificate of 127.0.0.1 and its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    certificate, key = self_signed()
    cafile = tmp_path_factory.mktemp("tls") / "ca.pem"
    cafile.write_text(certificate)
    port = free_port()
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    settings = {
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXY:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.proxy.plain.sasl.jaas.config": f'{login} user_reader="hunter2" user_stranger="stranger";',
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": certificate.replace("\n", "\\n"),
        "ssl.keystore.key": key.replace("\n", "\\n"),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:reader",
    }
    with EmbeddedKafka(via=(port, port), config=settings) as broker:
        yield Secured(broker.bootstrap, f"127.0.0.1:{port}", cafile)


@pytest.fixture(autouse=True)
async def closed_sockets() -> AsyncIterator[None]:
    """Ends the loop when the last TLS connection has been closed: aiokafka does not wait for that."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    before = len(selector.get_map())
    yield
    async with asyncio.timeout(10):
        while len(selector.get_map()) > before:
            await asyncio.sleep(0.01)


async def test_records_go_over_tls_and_sasl(secured: Secured) -> None:
    sink = KafkaSink(secured.config(), "secured", "run")
    s = stream()
    await sink.start()
    await sink.ensure_topic(s.topic, 1)
    writer = sink.writer(s, TextEncoder())
    await asyncio.wait_for(await writer.submit(writer.prepare(page(1, 100))), 30)
    await sink.close()

    assert len(await read_topic(secured.open, s.topic)) == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sasl_password": "wrong-secret"}, "the credentials were refused"),
        ({"sasl_username": "nobody"}, "the credentials were refused"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, "the credentials were refused"),
        ({"ssl_cafile": None}, "TLS failed"),
        ({"security_protocol": "SASL_PLAINTEXT", "connect_timeout_s": 2}, "127.0.0.1"),
    ],
)
async def test_what_the_broker_refuses_is_said_without_the_secret(
    secured: Secured, changes: dict[str, Any], message: str
) -> None:
    config = secured.config(**changes)
    with pytest.raises(ProducerError, match=message) as caught:
        await KafkaSink(config, "secured", "run").start()
    assert secured.address in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


async def test_a_topic_without_rights_is_named(secured: Secured) -> None:
    s = stream()
    info = await ensure_topic(KafkaConfig(bootstrap_servers=secured.open), s.topic, partitions=1)
    sink = KafkaSink(secured.config(sasl_username="stranger", sasl_password="stranger"), "secured", "run")
    await sink.start()
    with pytest.raises(AuthenticationError, match=f"could not look up topic '{s.topic}': not authorised"):
        await sink.ensure_topic(s.topic)

    sink._topics[s.topic] = info  # as if the rights had been taken away later
    writer = sink.writer(s, TextEncoder())
    with pytest.raises(AuthenticationError, match=r"not authorised \(grant Write on the topic"):
        await asyncio.wait_for(await writer.submit(writer.prepare(page(1, 1))), 30)
    await sink.close()
