"""Chats as pandas DataFrames, over the same source, paging and rate limiter as the Kafka pipeline.

async with TgData() as tg:
    async for batch in tg.get_all_messages(group_id="@name", checkpoint_file="checkpoint.json"):
        ...
"""

from __future__ import annotations

try:
    import pandas  # noqa: F401  # so that a missing package is named here, before the modules that need it
except ImportError:
    raise ImportError("TgData needs pandas: pip install 'streaming-producer[pandas]'") from None

from producer.tgdata.client import TgData
from producer.tgdata.frame import MessageFrame
from producer.tgdata.pace import next_delay
from producer.tgdata.progress import ProgressCallback

__all__ = ["MessageFrame", "ProgressCallback", "TgData", "next_delay"]
