"""The dump service under the names of iptvportal-client."""

from producer.dump import (
    AsyncDumpManager,
    DumpConfig,
    DumpFormat,
    DumpProgress,
    DumpService,
    DumpState,
    DumpStats,
    DumpStrategy,
)

__all__ = [
    "AsyncDumpManager",
    "DumpConfig",
    "DumpFormat",
    "DumpProgress",
    "DumpService",
    "DumpState",
    "DumpStats",
    "DumpStrategy",
]
