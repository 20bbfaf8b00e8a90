"""Where the settings of a `TgData` come from: its arguments, a config.ini, the environment.

A ``config.ini`` is read as the tgdata package reads it: a section ``[Telegram]`` with ``api_id``, ``api_hash`` and
``session_file``, the Telethon session file that the login of that package has left.
"""

from __future__ import annotations

import configparser
import logging
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from telethon.crypto import AuthKey
from telethon.sessions import StringSession

from producer.errors import ConfigError
from producer.sources.telegram.config import TelegramConfig

log = logging.getLogger(__name__)

DEFAULT_PATH = "config.ini"
DEFAULT_SESSION = "telegram_session"
NAMES = ("api_id", "api_hash", "session")
LONGEST_PATH = 255  #: a session string is longer

_NO = frozenset({"", "0", "no", "none", "off", "false"})
_KNOWN = frozenset({*NAMES, "session_file", "username", "phone", "proxy", "require_proxy"})


def telegram_config(
    config_path: str | Path | None, given: Mapping[str, Any], more: Mapping[str, Any]
) -> TelegramConfig:
    """The account's settings. `given` has `NAMES` as arguments (None: not given), `more` every other argument.

    An argument comes first, then the file of `config_path`, then the environment, then ``config.ini`` in the working
    folder where there is one. ConfigError names what is missing or wrong, and never shows a secret.
    """
    found = {name: value for name, value in given.items() if value is not None}
    if config_path is not None:
        found = read_config(Path(config_path)) | found
    variables = {name: os.environ.get(f"TELEGRAM_{name.upper()}") for name in NAMES}
    found = {name: value for name, value in variables.items() if value} | found
    if len(found) < len(NAMES) and config_path is None and Path(DEFAULT_PATH).is_file():
        found = read_config(Path(DEFAULT_PATH)) | found
    for name in NAMES:
        if name not in found:
            hint = f"give it to TgData, set TELEGRAM_{name.upper()}, or name a config.ini"
            raise ConfigError(f"{name} is missing", hint=hint)
    settings = dict(more)
    if "min_delay_s" not in settings and (least := os.environ.get("TELEGRAM_MIN_DELAY_S")):
        settings["min_delay_s"] = least
    try:
        return TelegramConfig.model_validate(found | settings | {"session": _session(str(found["session"]))})
    except ValidationError as error:
        raise _explain(error) from None


def read_config(path: Path) -> dict[str, Any]:
    """`NAMES` of a config.ini. ConfigError where it cannot be read, or asks for what is not there (a proxy)."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"config_path {path}: cannot be read: {why}") from None
    except configparser.Error as error:  # its text shows the lines, which may hold secrets
        line = getattr(error, "lineno", None) or next((number for number, _ in getattr(error, "errors", ())), None)
        at = f", line {line}" if line else ""
        raise ConfigError(f"config_path {path}{at}: it is not an .ini file ({type(error).__name__})") from None
    name = next((section for section in parser.sections() if section.lower() == "telegram"), None)
    if name is None:
        raise ConfigError(f"config_path {path}: it has no section [Telegram]")
    section = {key: _unquote(value) for key, value in parser[name].items()}
    _refuse_proxy(path, section)
    if ignored := sorted(set(section) - _KNOWN):
        log.warning("%s: %s: not used", path, ", ".join(ignored))
    found = {key: section[key] for key in NAMES if section.get(key)}
    session = section.get("session_file") or section.get("username") or DEFAULT_SESSION
    return {"session": session if session.endswith(".session") else f"{session}.session"} | found


def _unquote(value: str) -> str:
    return value.strip().strip("'\"")


def _refuse_proxy(path: Path, section: Mapping[str, str]) -> None:
    for key in ("proxy", "require_proxy"):
        if section.get(key, "").split(" ")[0].lower() not in _NO:
            raise ConfigError(
                f"config_path {path}: {key}: a proxy is not supported",
                hint="the connection would be a direct one: remove the key if that is wanted",
            )


def _session(text: str) -> str:
    """The session string of an argument: itself, what a file holds, or that of a Telethon session file."""
    if len(text) > LONGEST_PATH:
        return text
    path = Path(text)
    if not path.is_file():
        if path.suffix == ".session" or os.sep in text:
            hint = "log in with `producer telegram login`"
            raise ConfigError(f"session {text}: there is no such file", hint=hint)
        return text
    if path.read_bytes()[:15] == b"SQLite format 3":
        return _convert(path)
    return path.read_text(encoding="utf-8").strip()


def _convert(path: Path) -> str:
    """The session string of a Telethon session file, which is only read."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT dc_id, server_address, port, auth_key FROM sessions").fetchone()
    except sqlite3.Error as error:
        raise ConfigError(f"session {path}: it is not a Telethon session file ({type(error).__name__})") from None
    if row is None or not row[3]:
        raise ConfigError(f"session {path}: nobody is logged in", hint="log in with `producer telegram login`")
    session = StringSession()
    session.set_dc(*row[:3])
    session.auth_key = AuthKey(row[3])
    return str(session.save())


def _explain(error: ValidationError) -> ConfigError:
    """The first wrong argument, by its name."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(set(TelegramConfig.model_fields) - {"type"}))
        return ConfigError(f"{name}: TgData has no such argument", hint=f"it has config_path, {known}")
    return ConfigError(f"{name or 'TgData'}: {first['msg'].removeprefix('Value error, ')}")
