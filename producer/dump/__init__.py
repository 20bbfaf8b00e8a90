"""The dump service: tables of any source to files, pausable and resumable. A thin front end of the engine."""

from producer.dump.config import DumpConfig, DumpFormat, DumpStrategy
from producer.dump.manager import AsyncDumpManager
from producer.dump.progress import DumpProgress, DumpState, DumpStats
from producer.dump.service import DumpService

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
