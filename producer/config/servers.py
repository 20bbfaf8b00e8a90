"""Owns the configuration of what a run talks to: broker, registry, checkpoint stores, its own HTTP side, lineage."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from producer.config.base import ByteSize, Model
from producer.errors import ConfigError
from producer.urls import parse

MIN_TOKEN_LENGTH = 16
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/]+)(:(?P<port>\d{1,5}))?")


class KafkaConfig(Model):
    """The broker. TLS and SASL names are those of librdkafka and aiokafka with underscores."""

    bootstrap_servers: str = Field(
        default="localhost:9092", description="one or more brokers, host:port, separated by commas"
    )
    client_id: str = Field(default="producer", description="the name that the broker's logs and quotas see")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="zstd", description="of record batches"
    )
    compression_level: int | None = Field(default=None, description="of gzip and zstd; default: the codec's own")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="with SSL: TLS; with SASL: a login"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        default="PLAIN", description="how the login is made"
    )
    sasl_username: str | None = Field(default=None, description="the principal")
    sasl_password: SecretStr | None = Field(default=None, description="for OAUTHBEARER the access token")
    sasl_token_file: str | None = Field(
        default=None, description="OAUTHBEARER: a file with the access token, read for each connection"
    )
    ssl_cafile: str | None = Field(
        default=None, description="certificates of the authorities that are trusted, PEM; default: the system's"
    )
    ssl_certfile: str | None = Field(default=None, description="our own certificate for the broker, PEM")
    ssl_keyfile: str | None = Field(default=None, description="its key, PEM, where that is not in ssl_certfile")
    ssl_password: SecretStr | None = Field(default=None, description="the key's password")
    ssl_check_hostname: bool = Field(default=True, description="false: a certificate for another host is taken too")
    max_inflight_bytes: ByteSize = Field(
        default=24 * 2**20,
        description="what may wait for an acknowledgement; it bounds the memory: bytes, or text such as 64MiB",
    )
    max_request_size: ByteSize = Field(
        default=2**20,
        description="the largest request, so the largest record, that the broker takes: bytes, or text such as 64MiB",
    )
    connect_timeout_s: float = Field(default=10.0, description="for the first answer of a broker")
    request_timeout_s: float = Field(default=40.0, description="for one answer of a broker")
    delivery_timeout_s: float = Field(
        default=120.0, description="for the acknowledgement of a page; then its split goes back to its checkpoint"
    )
    headers: bool | Literal["cloudevents"] = Field(
        default=True, description="source, position and run on each record; cloudevents: those of CloudEvents 1.0 too"
    )
    state_topic: str | None = Field(default=None, description="default: <app>.state")
    state_partitions: int = Field(
        default=12, ge=1, le=1000, description="with coordination kafka: into how many parts each stream's work is cut"
    )

    @field_validator("bootstrap_servers")
    @classmethod
    def _are_servers(cls, servers: str) -> str:
        for server in servers.split(","):
            match = _SERVER.fullmatch(server.strip())
            if match is None or int(match["port"] or 9092) > 65535:
                raise ValueError("not brokers; valid: host:port, several of them with commas between")
        return servers


class RegistryConfig(Model):
    url: str = Field(description="of the Confluent-compatible interface")
    username: str | None = Field(default=None, description="for basic authentication")
    password: SecretStr | None = Field(default=None, description="${ENV} or ${file:PATH}")
    ssl_cafile: str | None = Field(
        default=None, description="certificates of the authorities that are trusted, PEM; default: the system's"
    )
    ssl_certfile: str | None = Field(default=None, description="our own certificate for the registry, PEM")
    ssl_keyfile: str | None = Field(default=None, description="its key, PEM")
    auto_register: bool = Field(default=True, description="false: schemas must be there; they are only looked up")
    subject_strategy: Literal["topic_name", "record_name", "topic_record_name"] = Field(
        default="topic_name", description="under which subject: <topic>-value, the record's name, or both"
    )
    timeout_s: float = Field(default=10.0, description="for one answer")


class FileCheckpointsConfig(Model):
    type: Literal["file"] = "file"
    path: str = Field(default="./state", description="a folder, relative to the configuration file")


class KafkaCheckpointsConfig(Model):
    type: Literal["kafka"]


class PostgresCheckpointsConfig(Model):
    type: Literal["postgres"]
    url: SecretStr = Field(description="of the database; tables are made where they are missing")


class RedisCheckpointsConfig(Model):
    type: Literal["redis"]
    url: SecretStr = Field(description="of the Redis; it has to keep what it is told to (appendonly yes)")
    prefix: str = Field(default="etl:", description="of all keys; applications on one Redis need one each")
    lock_timeout_s: float = Field(
        default=30.0, ge=0.2, description="another worker takes over when the holder was silent for so long"
    )


CheckpointsConfig = Annotated[
    FileCheckpointsConfig | KafkaCheckpointsConfig | PostgresCheckpointsConfig | RedisCheckpointsConfig,
    Field(discriminator="type"),
]


class RateLimitConfig(Model):
    """A token bucket that all workers of an account share."""

    type: Literal["redis"]
    url: SecretStr = Field(description="of the Redis")
    rate: float = Field(gt=0, description="requests a second, of all workers together")
    burst: int = Field(default=20, ge=1, description="how many may follow one another at once after a pause")
    key: str = Field(default="rate_limit:tokens", min_length=1, description="the bucket; one for each quota")


class HttpConfig(Model):
    host: str = Field(default="127.0.0.1", description="the address to listen on; 0.0.0.0: all")
    port: int = Field(default=9464, ge=0, le=65535, description="0: any free one, logged")
    token: SecretStr | None = Field(
        default=None, description="who sends it may pause, resume and replay; without one, who sits at the machine"
    )

    @field_validator("token")
    @classmethod
    def _long_enough(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and len(token.get_secret_value()) < MIN_TOKEN_LENGTH:
            raise ValueError(f"the token is too short to be a secret; give it at least {MIN_TOKEN_LENGTH} characters")
        return token


def _is_http_url(text: str) -> bool:
    try:
        parts = parse(text, "", example="")
    except ConfigError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host)


class LineageConfig(Model):
    """Where OpenLineage events go: to a server, or into a file, one a line."""

    url: str | None = Field(default=None, description="such as http://localhost:5000/api/v1/lineage")
    api_key: SecretStr | None = Field(default=None, description="sent as a bearer token")
    path: str | None = Field(default=None, description="a file, in the place of url")
    namespace: str | None = Field(default=None, description="of the jobs; default: app")
    interval_s: float = Field(default=60.0, gt=0, description="how often a stream is told to be RUNNING")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise ValueError("lineage needs one of url and path")
        if self.url is not None and not _is_http_url(self.url):
            raise ValueError("lineage.url is not an http or https URL")
        return self
