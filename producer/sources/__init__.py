"""Owns the list of sources: `type` in the configuration -> the module that holds it and its configuration model.

Modules are imported when they are named, so that a run pays only for the drivers it uses.
"""

from __future__ import annotations

#: type -> (module, source class, configuration model)
SOURCES: dict[str, tuple[str, str, str]] = {
    "sql": ("producer.sources.sql", "SqlSource", "SqlConfig"),
    "telegram": ("producer.sources.telegram", "TelegramSource", "TelegramConfig"),
    "iptvportal": ("producer.sources.iptvportal", "IptvPortalSource", "IptvPortalConfig"),
}

#: Types whose session one process may use at a time: a second one must not even connect.
ONE_SESSION = frozenset({"telegram"})
