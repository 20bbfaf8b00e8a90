"""Owns every error the product raises, and how each is answered.

::

    ProducerError
    ├─ ConfigError               wrong configuration: exit code 2
    ├─ TransientError            retried with backoff, then the split rewinds to its checkpoint
    │  ├─ RateLimitedError       FLOOD_WAIT, HTTP 429, the shared token bucket
    │  ├─ SourceUnavailableError (RequestTimeoutError)
    │  ├─ SinkUnavailableError
    │  ├─ StoreUnavailableError
    │  └─ StandbyError            another worker is at it: asked again for as long as it takes
    └─ PermanentError            the stream stops, the others go on; the checkpoint stays: exit code 1
       ├─ AuthenticationError
       ├─ SchemaIncompatibleError
       ├─ SchemaChangedError     the stream looks at its table again, and goes on where it can
       ├─ TableReplacedError
       ├─ EncodeError            (NullKeyError)
       ├─ RepeatedKeyError
       ├─ RecordTooLargeError
       ├─ CheckpointConflictError  (CheckpointLostError, OtherQueryError)
       └─ CheckpointCorruptError

Each carries one line for a person (``message``) and, where there is one, the way out (``hint``). Neither may hold
a secret: adapters translate third parties' errors in one place each, and leave URLs with passwords out.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence


class ProducerError(Exception):
    """Base of all errors raised on purpose: `message` says what is wrong, `hint` the way out ('' where none)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ProducerError):
    """The configuration cannot work; names the key, the value's kind and the nearest valid choice.

    `others` is what else is wrong with it, independently of this one.
    """

    def __init__(self, message: str, *, hint: str = "", others: Sequence[ConfigError] = ()) -> None:
        super().__init__(message, hint=hint)
        self.others = tuple(others)

    def __str__(self) -> str:
        more = f" (and {len(self.others)} more: producer validate lists them)" if self.others else ""
        return super().__str__() + more


class TransientError(ProducerError):
    """May pass by itself: retried with backoff; `retry_after_s` is the other side's own wish, in seconds."""

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class RateLimitedError(TransientError):
    """The other side, or our own shared limit, asks us to wait."""


class SourceUnavailableError(TransientError):
    """The source cannot be reached, or broke off."""


class RequestTimeoutError(SourceUnavailableError, TimeoutError):
    """The source did not answer in time. Also a TimeoutError, for callers who catch that."""


class SinkUnavailableError(TransientError):
    """The broker (or the disk) cannot be reached, or did not acknowledge in time."""


class StoreUnavailableError(TransientError):
    """The checkpoint store cannot be reached, or did not answer in time."""


class StandbyError(TransientError):
    """Another worker runs the stream, and this one stands by to take it over: no failure, however long it lasts."""


class PermanentError(ProducerError):
    """Trying again cannot help: the stream stops with its checkpoint where it is."""


def unexpected(error: Exception) -> PermanentError:
    """An error that nobody foresaw, as one of ours. Its text may hold anything, passwords included: only its kind and
    place are told."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    ours = PermanentError(f"unexpected {type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}")
    ours.__cause__ = error
    return ours


class AuthenticationError(PermanentError):
    """Credentials or permissions were refused."""


class SchemaIncompatibleError(PermanentError):
    """The schema cannot be had, or the registry refuses it; raised before anything is sent with it."""


class SchemaChangedError(PermanentError):
    """The table is not the one that was described: the stream begins anew at its checkpoint, with the new columns."""


class TableReplacedError(PermanentError):
    """Another table answers to the name: rows at or below the position would never be sent."""


class EncodeError(PermanentError):
    """A value has no form in the stream's schema. ``row`` is its place in the page, where that is known."""

    def __init__(
        self, message: str, *, stream: str = "", key: str = "", field: str = "", row: int | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.stream = stream
        self.key = key
        self.field = field
        self.row = row


class NullKeyError(EncodeError):
    """Rows have NULL in a column of the key or order, so that no page has them."""


class RepeatedKeyError(PermanentError):
    """Several rows of the source have the same key, which the message shows."""


class RecordTooLargeError(PermanentError):
    """One record alone is larger than the broker takes. ``row`` is its place in the page, ``size`` is in bytes."""

    def __init__(
        self, message: str, *, stream: str = "", key: str = "", size: int = 0, row: int | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.stream = stream
        self.key = key
        self.size = size
        self.row = row


class CheckpointConflictError(PermanentError):
    """Another runner owns the stream, or the checkpoint was made by another query."""


class CheckpointLostError(CheckpointConflictError):
    """The checkpoint went away while the stream ran, and no other runner has taken it."""


class OtherQueryError(CheckpointConflictError):
    """The checkpoint was made by another query than the configured one."""


class CheckpointCorruptError(PermanentError):
    """A checkpoint is there and cannot be read."""
