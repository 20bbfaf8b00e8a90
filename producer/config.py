"""Owns the configuration: its models, and how a YAML file becomes one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from producer.model import Mode, Traversal

ByteSize = Annotated[int, Field(description="bytes, or text such as 64MiB")]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaConfig(Model):
    """The broker. TLS and SASL names are those of librdkafka and aiokafka with underscores."""

    bootstrap_servers: str = "localhost:9092"
    client_id: str = "producer"
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "zstd"
    compression_level: int | None = None
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: SecretStr | None = None
    ssl_check_hostname: bool = True
    max_inflight_bytes: ByteSize = 64 * 2**20
    max_request_size: ByteSize = 2**20
    request_timeout_s: float = 40.0
    delivery_timeout_s: float = 120.0
    headers: bool = True
    state_topic: str | None = Field(None, description="default: <app>.state")


class RegistryConfig(Model):
    url: str
    username: str | None = None
    password: SecretStr | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    auto_register: bool = True
    subject_strategy: Literal["topic_name", "record_name", "topic_record_name"] = "topic_name"
    timeout_s: float = 10.0


class FileCheckpointsConfig(Model):
    type: Literal["file"] = "file"
    path: str = "./state"


class KafkaCheckpointsConfig(Model):
    type: Literal["kafka"]


class PostgresCheckpointsConfig(Model):
    type: Literal["postgres"]
    url: SecretStr


class RedisCheckpointsConfig(Model):
    type: Literal["redis"]
    url: SecretStr


CheckpointsConfig = Annotated[
    FileCheckpointsConfig | KafkaCheckpointsConfig | PostgresCheckpointsConfig | RedisCheckpointsConfig,
    Field(discriminator="type"),
]


class HttpConfig(Model):
    host: str = "127.0.0.1"
    port: int = Field(9464, ge=0, le=65535)


class StreamConfig(Model):
    """One table (or chat) going to one topic."""

    name: str
    source: str
    table: str | None = None
    chat: str | int | None = None
    topic: str = ""
    traversal: Traversal = "ID_RANGE"
    mode: Mode = "snapshot"
    key: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    where: Any = None
    params: Mapping[str, Any] = Field(default_factory=dict)
    order_by: tuple[str, ...] | None = None
    page_size: int = Field(5000, ge=1, le=1_000_000)
    max_parallel: int = Field(3, ge=1, le=64)
    partitions: int | None = Field(None, ge=1)
    replication_factor: int | None = Field(None, ge=1)
    topic_config: Mapping[str, str] = Field(default_factory=dict)
    schema_file: str | None = Field(None, alias="schema")
    decimal: str | None = Field(None, description="precision,scale of a numeric that has none, or 'string'")
    on_bad_record: Literal["fail", "dead_letter"] = "fail"
    transforms: tuple[Mapping[str, Any], ...] = ()
    poll_interval_s: float = Field(5.0, gt=0)
    max_rows_per_s: float | None = Field(None, gt=0)


class Config(Model):
    app: str = "producer"
    kafka: KafkaConfig = KafkaConfig()
    schema_registry: RegistryConfig | None = None
    checkpoints: CheckpointsConfig = FileCheckpointsConfig()
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    http: HttpConfig = HttpConfig()
    sources: Mapping[str, Any]  # each checked by the model that its source registers under `type`
    streams: tuple[StreamConfig, ...]
