"""Telegram chats as a source: messages of one account's chats, read forward by their ids.

The source is imported when it is first asked for: the client library takes longer to import than a whole
configuration to check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from producer.sources.telegram.config import TelegramConfig

if TYPE_CHECKING:
    from producer.sources.telegram.source import TelegramSource

__all__ = ["TelegramConfig", "TelegramSource"]


def __getattr__(name: str) -> Any:
    if name == "TelegramSource":
        from producer.sources.telegram.source import TelegramSource

        return TelegramSource
    raise AttributeError(name)
