"""Owns the configuration of a Telegram source, and what a stream's ``where`` may say for a chat."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator

from producer.config import Model, RateLimitConfig
from producer.errors import ConfigError


class TelegramConfig(Model):
    """One account. A session belongs to one running process: a second address that uses it ends it for good."""

    type: Literal["telegram"] = "telegram"
    api_id: int = Field(gt=0, description="from https://my.telegram.org")
    api_hash: SecretStr = Field(description="from https://my.telegram.org")
    session: SecretStr = Field(description="what `producer telegram login` prints; ${ENV} or ${file:PATH}")
    min_delay_s: float = Field(1.0, ge=0, description="least seconds between two requests of the account")
    max_delay_s: float = Field(30.0, gt=0, description="the delay doubles up to this after a flood wait")
    burst: int = Field(5, ge=1, description="requests that may follow one another at once after a pause")
    adaptive: bool = Field(True, description="false: always min_delay_s (flood waits are kept all the same)")
    rate_limit: RateLimitConfig | None = Field(None, description="shared by the workers of several accounts")
    request_timeout_s: float = Field(30.0, gt=0, description="a request without an answer by then is asked anew")
    updates: bool = Field(False, description="be told of new, edited and deleted messages at once, beside polling")
    edit_window: int = Field(100, ge=0, le=10_000, description="how many of the newest messages are watched for edits")
    takeout: bool = Field(False, description="read in a takeout session (lower flood limits; confirm it in the app)")
    media_path: str | None = Field(None, description="folder or s3://, gs:// URL that media files are written to")
    media_max_bytes: int = Field(20 * 2**20, gt=0, description="larger media are named, not downloaded")
    profile_photos_path: str | None = Field(None, description="folder or URL that senders' photos are written to")

    @model_validator(mode="after")
    def _delays_in_order(self) -> Self:
        if self.min_delay_s > self.max_delay_s:
            raise ValueError("min_delay_s is larger than max_delay_s")
        return self


class ChatFilter(Model):
    """A chat stream's ``where``: only messages sent from `start_date` to `end_date`, both included.

    A date without a zone is UTC. Both are found by seeking; what lies outside is not read.
    """

    start_date: dt.datetime | None = None
    end_date: dt.datetime | None = None

    @model_validator(mode="after")
    def _dates_in_order(self) -> Self:
        start, end = self.bounds
        if start is not None and end is not None and start > end:
            raise ValueError("start_date is after end_date")
        return self

    @property
    def bounds(self) -> tuple[dt.datetime | None, dt.datetime | None]:
        """Both dates with a zone."""
        return in_utc(self.start_date), in_utc(self.end_date)


def in_utc(date: dt.datetime | None) -> dt.datetime | None:
    """The date with a zone: one without is UTC, never the machine's."""
    return date.replace(tzinfo=dt.UTC) if date is not None and date.tzinfo is None else date


def chat_filter(where: Any, stream: str) -> ChatFilter:
    """The ``where`` of a chat stream; ConfigError for anything that is not in `ChatFilter`."""
    if where is None:
        return ChatFilter()
    if not isinstance(where, dict):
        raise ConfigError(f"streams.{stream}.where: a chat takes a mapping with start_date and end_date only")
    try:
        return ChatFilter.model_validate(where)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in ("where", *first["loc"]))
        raise ConfigError(f"streams.{stream}.{at}: {first['msg']}", hint="start_date, end_date") from None
