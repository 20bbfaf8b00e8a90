"""Owns the configuration: its models, what reads a file into them, and how a mistake in it is told."""

from __future__ import annotations

from producer.config.base import ByteSize, Model, parse_bytes
from producer.config.load import load_config, source_model
from producer.config.servers import (
    CheckpointsConfig,
    FileCheckpointsConfig,
    HttpConfig,
    KafkaCheckpointsConfig,
    KafkaConfig,
    LineageConfig,
    PostgresCheckpointsConfig,
    RateLimitConfig,
    RedisCheckpointsConfig,
    RegistryConfig,
)
from producer.config.stream import DeletesConfig, StreamConfig, default_name
from producer.config.transforms import (
    CastConfig,
    ConstantConfig,
    DropConfig,
    MaskConfig,
    RenameConfig,
    ToUtcConfig,
    TransformConfig,
)
from producer.config.whole import Config

__all__ = [
    "ByteSize",
    "CastConfig",
    "CheckpointsConfig",
    "Config",
    "ConstantConfig",
    "DeletesConfig",
    "DropConfig",
    "FileCheckpointsConfig",
    "HttpConfig",
    "KafkaCheckpointsConfig",
    "KafkaConfig",
    "LineageConfig",
    "MaskConfig",
    "Model",
    "PostgresCheckpointsConfig",
    "RateLimitConfig",
    "RedisCheckpointsConfig",
    "RegistryConfig",
    "RenameConfig",
    "StreamConfig",
    "ToUtcConfig",
    "TransformConfig",
    "default_name",
    "load_config",
    "parse_bytes",
    "source_model",
]
