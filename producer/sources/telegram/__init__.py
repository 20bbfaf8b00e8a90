"""Telegram chats as a source: messages of one account's chats, read forward by their ids."""

from __future__ import annotations

from producer.sources.telegram.config import TelegramConfig
from producer.sources.telegram.source import TelegramSource

__all__ = ["TelegramConfig", "TelegramSource"]
