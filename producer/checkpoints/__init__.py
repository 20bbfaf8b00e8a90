"""Owns the list of checkpoint stores: `checkpoints.type` in the configuration -> the class that keeps them."""

from __future__ import annotations

#: type -> (module, class). Each class takes (config: Config) and implements `producer.protocols.CheckpointStore`.
STORES: dict[str, tuple[str, str]] = {
    "file": ("producer.checkpoints.file", "FileCheckpointStore"),
    "kafka": ("producer.checkpoints.kafka", "KafkaCheckpointStore"),
    "redis": ("producer.checkpoints.redis", "RedisCheckpointStore"),
    "postgres": ("producer.checkpoints.postgres", "PostgresCheckpointStore"),
}
