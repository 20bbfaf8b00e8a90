"""Owns the configuration: its models, the rules between their keys, and `load_config`."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from producer.checkpoints import STORES
from producer.configcheck import Contradictions, explain, nearest
from producer.configtext import ConfigText, KeyPath, dotted, kind_of, read_config_text
from producer.errors import ConfigError
from producer.model import Mode, Traversal
from producer.sources import ONE_SESSION, SOURCES

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
MIN_SALT_LENGTH = 8
MIN_TOKEN_LENGTH = 16
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/]+)(:(?P<port>\d{1,5}))?")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def parse_bytes(value: object) -> object:
    """``64MiB``, ``1MB`` or ``4096`` as a number of bytes; anything but text is left to the model."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or match["unit"].lower() not in _UNITS:
        raise ValueError("not a size; write bytes as a whole number, or with a unit: kB, MB, GB, KiB, MiB, GiB")
    return round(float(match["number"]) * _UNITS[match["unit"].lower()])


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1, description="bytes, or text such as 64MiB")]


class Model(BaseModel):
    """Base of every configuration model, the sources' own included: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_as_number(cls, data: Any) -> Any:
        """YAML's `yes` and `on` would pass as the number 1: something that no number can be stands in their place."""
        if not isinstance(data, dict):
            return data
        return {name: [] if cls._takes_number_only(name, value) else value for name, value in data.items()}

    @classmethod
    def _takes_number_only(cls, name: str, value: Any) -> bool:
        if not isinstance(value, bool) or name not in cls.model_fields:
            return False
        annotation = cls.model_fields[name].annotation
        kinds = set(get_args(annotation)) or {annotation}
        return bool(kinds & {int, float}) and bool not in kinds


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
        default=64 * 2**20,
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
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


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


class RenameConfig(Model):
    rename: Mapping[str, str] = Field(min_length=1, description="old name: new name")


class DropConfig(Model):
    drop: tuple[str, ...] = Field(min_length=1, description="columns; one of the key stays in the record's key")


class ConstantConfig(Model):
    constant: Mapping[str, bool | int | float | str] = Field(min_length=1, description="new column: its value")


class MaskConfig(Model):
    """With `salt` by HMAC-SHA-256, in hex, so that equal values stay equal; with `with` all by the same text."""

    mask: tuple[str, ...] = Field(min_length=1, description="columns; null stays null")
    salt: SecretStr | None = Field(default=None, description=f"a secret of at least {MIN_SALT_LENGTH} characters")
    text: str | None = Field(default=None, alias="with", description="what stands in the place of every value")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.salt is None) == (self.text is None):
            raise ValueError("a mask needs one of salt (values are hashed) and with (values are replaced)")
        if self.salt is not None and len(self.salt.get_secret_value()) < MIN_SALT_LENGTH:
            raise ValueError(f"salt is too short to hide anything; give it at least {MIN_SALT_LENGTH} characters")
        return self


class CastConfig(Model):
    cast: Mapping[str, str] = Field(
        min_length=1,
        description="column: boolean, int, long, float, double, string, bytes, date, timestamp, local_timestamp or "
        "decimal(precision,scale)",
    )


class ToUtcConfig(Model):
    to_utc: tuple[str, ...] = Field(min_length=1, description="timestamp columns")
    zone: str = Field(default="UTC", description="that in which timestamps without a zone were written")

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            raise ValueError(f"{zone!r} is not a time zone{nearest(zone, available_timezones())}") from None
        return zone


_TRANSFORMS: Mapping[str, type[Model]] = {
    "rename": RenameConfig,
    "drop": DropConfig,
    "constant": ConstantConfig,
    "mask": MaskConfig,
    "cast": CastConfig,
    "to_utc": ToUtcConfig,
}


def _which_transform(value: Any) -> str:
    """The one key of a transform that says what it does."""
    if isinstance(value, BaseModel):
        return next(name for name, model in _TRANSFORMS.items() if isinstance(value, model))
    if not isinstance(value, Mapping):
        raise ValueError(f"a transform is a mapping with one of: {', '.join(_TRANSFORMS)}")
    named = [name for name in _TRANSFORMS if name in value]
    if len(named) == 1:
        return named[0]
    if named:
        raise ValueError(f"{' and '.join(named)} are two transforms; give each an entry of its own, in their order")
    first = str(next(iter(value), ""))
    raise ValueError(f"{first!r} is not a transform; valid: {', '.join(_TRANSFORMS)}{nearest(first, _TRANSFORMS)}")


def _is_transform(value: Any) -> Any:
    _which_transform(value)
    return value


TransformConfig = Annotated[
    Annotated[RenameConfig, Tag("transform rename")]
    | Annotated[DropConfig, Tag("transform drop")]
    | Annotated[ConstantConfig, Tag("transform constant")]
    | Annotated[MaskConfig, Tag("transform mask")]
    | Annotated[CastConfig, Tag("transform cast")]
    | Annotated[ToUtcConfig, Tag("transform to_utc")],
    Discriminator(lambda value: f"transform {_which_transform(value)}"),
    BeforeValidator(_is_transform),
]


class DeletesConfig(Model):
    every_s: float = Field(
        default=300.0, gt=0, description="seconds between two comparisons of the topic's keys with the source's"
    )


class StreamConfig(Model):
    """One table (or chat) going to one topic."""

    name: str = Field(default="", description="default: the table's or chat's name")
    source: str = Field(description="one of sources")
    table: str | None = Field(default=None, description='parts quoted as in SQL: \'"Odd Names"."t-1"\'')
    chat: str | int | None = Field(default=None, description="of a Telegram source: @name, link, or id")
    topic: str = Field(default="", description="default: <source>.<name>")
    traversal: Traversal = Field(
        default="ID_RANGE",
        description="ID_RANGE: ranges of the key, side by side; OFFSET: by counting rows, where nothing moves",
    )
    mode: Mode = Field(
        default="snapshot",
        description="snapshot: what is there; tail: what comes; snapshot_then_tail: both; timestamp: what changes too",
    )
    start: Literal["beginning", "latest"] = Field(
        default="beginning", description="where a tail begins: latest is after the greatest key that there is"
    )
    notify: str | None = Field(
        default=None, min_length=1, max_length=63, description="PostgreSQL: a channel whose NOTIFY tells of new rows"
    )
    late_commit_s: float = Field(
        default=3600.0,
        ge=0,
        description="how long after a higher key was read a row may still commit; a missing id is asked for so long. "
        "0: such rows are lost",
    )
    delay_s: float = Field(
        default=5.0, ge=0, description="mode timestamp: rows are read when they are so old; longer than transactions"
    )
    key: tuple[str, ...] | None = Field(default=None, min_length=1, description="default: the primary key")
    columns: tuple[str, ...] | None = Field(default=None, min_length=1, description="only these; default: all")
    exclude: tuple[str, ...] = Field(default=(), description="all but these")
    where: Any = Field(default=None, description="a condition; its bound parameters stand in params")
    params: Mapping[str, Any] = Field(default_factory=dict, description="values of the :NAMES in where")
    order_by: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="the traversal's order; default: the key, which is appended where the order is not total",
    )
    page_size: int = Field(default=20_000, ge=1, le=1_000_000, description="rows a fetch")
    max_parallel: int = Field(default=3, ge=1, le=64, description="splits read side by side")
    partitions: int | None = Field(
        default=None, ge=1, description="of the topic, where it is made; default: the broker's"
    )
    replication_factor: int | None = Field(
        default=None, ge=1, description="of the topic, where it is made; default: the broker's"
    )
    topic_config: Mapping[str, str] = Field(
        default_factory=dict, description="settings of the topic, where it is made, such as cleanup.policy"
    )
    schema_file: str | None = Field(default=None, alias="schema", description="an .avsc file")
    decimal: str | None = Field(default=None, description="precision,scale of a numeric that has none, or 'string'")
    on_bad_record: Literal["fail", "dead_letter"] = Field(
        default="fail",
        description="fail: the stream stops before it; dead_letter: it goes to <topic>.dlq, and the stream goes on",
    )
    transforms: tuple[TransformConfig, ...] = Field(default=(), description="done to each row, in this order")
    poll_interval_s: float = Field(
        default=5.0, gt=0, description="how often new rows are looked for, after all have been read"
    )
    max_rows_per_s: float | None = Field(default=None, gt=0, description="the rate of reading, at most")
    deletes: DeletesConfig | None = Field(default=None, description="sends tombstones for rows that are gone")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """The name is the table's or chat's, the topic <source>.<name>."""
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        if not filled.get("name"):
            filled["name"] = default_name(filled.get("table"), filled.get("chat"))
        if not filled.get("topic"):
            filled["topic"] = f"{filled.get('source')}.{filled['name']}"
        return filled

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if found := list(self._contradictions()):
            raise Contradictions(found)
        return self

    def _contradictions(self) -> Iterator[tuple[KeyPath, str]]:
        if self.table is not None and self.chat is not None:
            yield ("chat",), "table and chat are both given; a stream reads one of them"
        if self.table is None and self.chat is None:
            yield (), "neither table nor chat is given; a stream reads one of them"
            return  # and so it has no name
        if not self.name or self.name in {".", ".."} or not self.name.isprintable() or "/" in self.name:
            yield ("name",), "name is empty or has a slash or control character in it; give the stream another name"
        elif not _TOPIC.fullmatch(self.topic) or self.topic in {".", ".."}:
            yield (
                ("topic",),
                f"topic {self.topic!r} is not a Kafka topic name (letters, digits, dot, underscore, hyphen, "
                "at most 249); set topic",
            )
        if self.traversal == "OFFSET" and self.mode != "snapshot":
            yield (
                ("traversal",),
                f"traversal OFFSET cannot be used with mode {self.mode}; use ID_RANGE, or mode snapshot",
            )
        if self.deletes is not None and (self.mode == "snapshot" or self.table is None):
            yield ("deletes",), "deletes needs a table, and a mode that follows it, such as snapshot_then_tail"
        if self.deletes is not None and (self.transforms or self.schema_file is not None):
            yield (
                ("deletes",),
                "deletes cannot be used with transforms or schema: keys are compared as the table has them",
            )
        if self.mode == "timestamp" and not self.order_by:
            yield ("mode",), "mode timestamp needs order_by with the column that holds the time of the last change"
        if self.start == "latest" and self.mode not in ("tail", "timestamp"):
            yield ("start",), f"start latest cannot be used with mode {self.mode}; use mode tail or timestamp"
        for column in sorted(set(self.columns or ()) & set(self.exclude)):
            yield ("exclude",), f"column {column!r} stands in both columns and exclude; take it out of one of them"


class Config(Model):
    app: str = Field(
        default="producer",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="names the group, the transactional ids and the state topic",
    )
    kafka: KafkaConfig = KafkaConfig()
    schema_registry: RegistryConfig | None = None
    checkpoints: CheckpointsConfig = FileCheckpointsConfig()
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        default="at_least_once",
        description="exactly_once: records and checkpoint in one Kafka transaction; needs checkpoints of type kafka",
    )
    coordination: Literal["none", "redis", "kafka"] = Field(
        default="none",
        description="how processes of one app share the work: redis: one runs a stream and the others stand by; "
        "kafka: each runs a part, as the members of a consumer group",
    )
    http: HttpConfig = HttpConfig()
    lineage: LineageConfig | None = Field(default=None, description="OpenLineage events of each stream's run")
    opentelemetry: bool = Field(
        default=False,
        description="a trace for each page, to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra otel",
    )
    retry_timeout_s: float = Field(
        default=600.0, gt=0, description="a stream that has made no progress for so long fails"
    )
    shutdown_timeout_s: float = Field(default=25.0, gt=0, description="time to drain after SIGTERM or Ctrl-C")
    sources: Mapping[str, Any]  # each checked by the model that its source registers under `type`
    streams: tuple[StreamConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if found := list(self._contradictions()):
            raise Contradictions(found)
        return self

    def _contradictions(self) -> Iterator[tuple[KeyPath, str]]:
        seen: dict[str, int] = {}
        for index, stream in enumerate(self.streams):
            where = ("streams", index)
            if stream.source not in self.sources:
                yield (
                    (*where, "source"),
                    f"streams[{index}].source is {stream.source!r}, which is not in sources"
                    + (nearest(stream.source, self.sources) or f"; valid: {', '.join(self.sources)}"),
                )
            if stream.name in seen:
                yield (
                    (*where, "name"),
                    f"streams[{index}] and streams[{seen[stream.name]}] have the same name {stream.name!r}; "
                    "give one of them a name of its own",
                )
            seen.setdefault(stream.name, index)
            if self.delivery == "exactly_once" and stream.traversal == "OFFSET":
                yield (
                    (*where, "traversal"),
                    f"streams[{index}].traversal OFFSET cannot be delivered exactly_once: its position is not "
                    "unique; use ID_RANGE",
                )
            if stream.deletes is not None and any(s.topic == stream.topic for s in self.streams if s is not stream):
                yield (
                    (*where, "deletes"),
                    f"streams[{index}].deletes would take other streams' keys in topic {stream.topic!r} for deleted "
                    "rows; give the stream a topic of its own",
                )
            if stream.deletes is not None and self.coordination == "kafka":
                yield (
                    (*where, "deletes"),
                    f"streams[{index}].deletes cannot be used where work is shared (coordination kafka)",
                )
        for name in dict.fromkeys(stream.source for stream in self.streams):
            if self.coordination == "kafka" and getattr(self.sources.get(name), "type", "") in ONE_SESSION:
                yield (
                    ("coordination",),
                    f"coordination kafka would use the session of sources.{name} from several processes at once, and "
                    "Telegram ends such a session for good; use coordination redis: one works, the others stand by",
                )
        if self.coordination != "none" and self.checkpoints.type != self.coordination:
            yield (
                ("coordination",),
                f"coordination {self.coordination} needs checkpoints of type {self.coordination}, not "
                f"{self.checkpoints.type}: who owns what is decided where the checkpoints are",
            )
        if self.delivery == "exactly_once" and self.checkpoints.type != "kafka":
            yield (
                ("delivery",),
                f"delivery exactly_once needs checkpoints of type kafka, not {self.checkpoints.type}: records and "
                "checkpoint are committed in one Kafka transaction",
            )

    @property
    def state_topic(self) -> str:
        """The compacted topic of checkpoints and of schemas without a registry."""
        return self.kafka.state_topic or f"{self.app}.state"


def default_name(table: object, chat: object) -> str:
    """The last part of a table's name without its quotes, or a chat's name without @ or address."""
    if isinstance(table, str):
        last = re.findall(r'"(?:[^"]|"")*"|[^."]+', table)[-1:]
        return last[0].strip('"').replace('""', '"') if last else ""
    if isinstance(chat, str | int) and not isinstance(chat, bool):
        return str(chat).rstrip("/").rsplit("/", 1)[-1].removeprefix("@")
    return ""


def source_model(kind: str) -> type[BaseModel]:
    """The configuration model of a source type; KeyError for an unknown one."""
    module, _, model = SOURCES[kind]
    found: type[BaseModel] = getattr(importlib.import_module(module), model)
    return found


def load_config(path: str | Path, env: Mapping[str, str] | None = None) -> Config:
    """Reads, interpolates and checks a configuration file; ConfigError (one line) for whatever is wrong with it.

    Paths in it are relative to the file's folder, so that a run from elsewhere finds the same checkpoints.
    """
    text = read_config_text(Path(path), os.environ if env is None else env)
    data = dict(text.data)
    wrong = list(text.problems.values())
    if isinstance(data.get("sources"), dict):
        data["sources"] = {name: _load_source(text, name, value, wrong) for name, value in data["sources"].items()}
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        wrong += explain(text, Config, error)
    if wrong:
        raise ConfigError(wrong[0].message, hint=wrong[0].hint, others=wrong[1:])
    if config.checkpoints.type not in STORES:
        raise ConfigError(f"checkpoints.type {config.checkpoints.type} is not built in; valid: {', '.join(STORES)}")
    return _with_absolute_paths(config, text.path.parent.absolute())


def _load_source(text: ConfigText, name: str, value: Any, wrong: list[ConfigError]) -> BaseModel | None:
    """The source's configuration; None where it cannot be had, and what is wrong is added to `wrong`."""
    where: KeyPath = ("sources", name)
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict):
        problem = f"{dotted(where)} is {kind_of(value)}; a source is a mapping with a type"
    elif kind is None:
        problem = f"{dotted(where)}.type is missing; valid: {', '.join(SOURCES)}"
    elif not isinstance(kind, str) or kind not in SOURCES:
        where = (*where, "type")
        problem = f"{dotted(where)} is not a kind of source; valid: {', '.join(SOURCES)}{nearest(str(kind), SOURCES)}"
    else:
        model = source_model(kind)
        try:
            return model.model_validate(value)
        except ValidationError as error:
            wrong += explain(text, model, error, where)
            return None
    if where not in text.problems:
        wrong.append(ConfigError(f"{text.at(where)}: {problem}"))
    return None


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    def absolute(model: Model, *names: str) -> dict[str, str]:
        return {name: str(folder / value) for name in names if (value := getattr(model, name)) is not None}

    ssl = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
    update: dict[str, Any] = {
        "kafka": config.kafka.model_copy(update=absolute(config.kafka, *ssl)),
        "streams": tuple(s.model_copy(update=absolute(s, "schema_file")) for s in config.streams),
    }
    if config.schema_registry is not None:
        update["schema_registry"] = config.schema_registry.model_copy(update=absolute(config.schema_registry, *ssl))
    if isinstance(config.checkpoints, FileCheckpointsConfig):
        update["checkpoints"] = config.checkpoints.model_copy(update=absolute(config.checkpoints, "path"))
    return config.model_copy(update=update)
