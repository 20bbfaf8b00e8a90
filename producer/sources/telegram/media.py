"""Owns downloads: media files and senders' photos into a folder or an object store, off unless configured.

A file's name follows from its message, so reading a page again does not fetch it again. A file that Telegram refuses
is left out with a warning: its message is not lost for it.
"""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import uuid
from collections.abc import Sequence
from typing import Any

from pyarrow import fs

from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    ConfigError,
    PermanentError,
    RateLimitedError,
    TransientError,
)
from producer.sources.telegram.account import Account
from producer.sources.telegram.chats import Chat, marked_id
from producer.sources.telegram.config import TelegramConfig
from producer.sources.telegram.record import Rows

log = logging.getLogger(__name__)

FILE_TIMEOUT_S = 300.0
PHOTOS_REMEMBERED = 10_000


class Store:
    """A folder, or an object store named by a URL (s3://, gs://, abfs://)."""

    def __init__(self, path: str, key: str) -> None:
        try:
            self._fs: fs.FileSystem
            self._base: str
            self._fs, self._base = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"{key}: cannot be written to ({type(error).__name__})", hint="a folder or s3:// URL"
            ) from None

    async def has(self, name: str) -> bool:
        info = await asyncio.to_thread(self._fs.get_file_info, self.path(name))
        return bool(info.type == fs.FileType.File)

    async def write(self, name: str, data: bytes) -> None:
        """Writes the whole file, or nothing under that name."""
        await asyncio.to_thread(self._write, self.path(name), data)

    def _write(self, path: str, data: bytes) -> None:
        try:
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
            part = f"{path}.{uuid.uuid4().hex[:8]}.part"  # another stream may be writing the same photo
            with self._fs.open_output_stream(part) as stream:
                stream.write(data)
            self._fs.move(part, path)
        except OSError as error:
            raise TransientError(f"{path}: cannot be written ({type(error).__name__})") from None

    def path(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"


class Downloads:
    """Fetches what the configuration asks for and fills in where it was written."""

    def __init__(self, account: Account, config: TelegramConfig) -> None:
        self._account = account
        self._max_bytes = config.media_max_bytes
        self._media = Store(config.media_path, "media_path") if config.media_path else None
        path = config.profile_photos_path
        self._photos = Store(path, "profile_photos_path") if path else None
        self._photo_of: dict[int, str | None] = {}

    @staticmethod
    def wanted(config: TelegramConfig) -> bool:
        """Whether anything is to be downloaded."""
        return bool(config.media_path or config.profile_photos_path)

    async def enrich(self, rows: Rows, chat: Chat, messages: Sequence[Any], entities: dict[int, Any]) -> None:
        """Downloads for the last rows, which are these messages."""
        first = len(rows) - len(messages)
        for row, message in enumerate(messages, first):
            if self._media is not None and message.file is not None and (message.file.size or 0) <= self._max_bytes:
                extension = message.file.ext or mimetypes.guess_extension(message.file.mime_type or "") or ""
                name = f"{chat.marked_id}/{message.id}{extension}"
                if await self._fetch(self._media, name, message, "download_media"):
                    rows.set("media_file", row, self._media.path(name))
            sender = entities.get(marked_id(message.from_id) or chat.marked_id)
            if self._photos is not None and sender is not None:
                rows.set("sender_photo", row, await self._photo(self._photos, sender))

    async def _photo(self, store: Store, sender: Any) -> str | None:
        number = marked_id(sender)
        assert number is not None
        if number not in self._photo_of:
            if len(self._photo_of) >= PHOTOS_REMEMBERED:
                self._photo_of.clear()
            photo_id = getattr(getattr(sender, "photo", None), "photo_id", None)
            name = f"{number}-{photo_id}.jpg"
            found = photo_id is not None and await self._fetch(store, name, sender, "download_profile_photo")
            self._photo_of[number] = store.path(name) if found else None
        return self._photo_of[number]

    async def _fetch(self, store: Store, name: str, subject: Any, method: str) -> bool:
        if await store.has(name):
            return True
        left_s = await self._account.limiter.acquire("GetFileRequest", at_most_s=FILE_TIMEOUT_S)
        if left_s > 0:
            raise RateLimitedError("a file of a message", retry_after_s=left_s)
        try:
            data = await self._account.download(method, subject, f"file {name}", timeout_s=FILE_TIMEOUT_S)
        except (AuthenticationError, CheckpointConflictError):
            raise
        except PermanentError as error:
            log.warning("%s", error)
            return False
        if data is None:
            return False
        await store.write(name, data)
        return True
