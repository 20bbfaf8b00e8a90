"""Owns the whole of a configuration, and the rules between its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from producer.config.base import ConsistentModel
from producer.config.explain import nearest
from producer.config.servers import (
    CheckpointsConfig,
    FileCheckpointsConfig,
    HttpConfig,
    KafkaConfig,
    LineageConfig,
    RegistryConfig,
)
from producer.config.stream import StreamConfig
from producer.config.text import KeyPath
from producer.sources import ONE_SESSION


class Config(ConsistentModel):
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
            if stream.on_replaced == "restart" and self.coordination == "kafka":
                yield (
                    ("streams", index, "on_replaced"),
                    f"streams[{index}].on_replaced restart cannot be used where work is shared (coordination kafka); "
                    "use fail, and reset the stream",
                )
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
