"""Owns what every user of Redis shares: the client's settings, and its errors as ours, none of which holds the URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as re_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from producer.errors import AuthenticationError, ConfigError, PermanentError, StoreUnavailableError
from producer.urls import parse

SOCKET_TIMEOUT_S = 5.0

#: How answers begin of a server that cannot serve just now: full, loading, failing over, or unable to save.
_PASSING = ("OOM", "LOADING", "READONLY", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS")
_REFUSED = ("NOAUTH", "WRONGPASS", "NOPERM")


def client(url: str, key: str) -> Redis:
    """A client that connects when it is used, and repeats a request once if need be. ConfigError names `key`."""
    example = "redis://:password@host:6379/0, rediss:// for TLS"
    parse(url, f"{key} is not a Redis URL", example=example)
    try:
        return Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
        )
    except (ValueError, TypeError):  # its text may hold a part of the URL
        raise ConfigError(f"{key} is not a Redis URL", hint=example) from None


@contextmanager
def redis_errors(what: str, key: str) -> Iterator[None]:
    """redis-py's errors as ours; `what` is the message's beginning, `key` the configuration's key of the URL."""
    try:
        yield
    except (re_errors.AuthenticationError, re_errors.AuthorizationError, re_errors.NoPermissionError):
        raise AuthenticationError(f"{what}: Redis refused the credentials", hint=f"check {key}") from None
    except (TimeoutError, re_errors.TimeoutError):
        raise StoreUnavailableError(f"{what}: Redis did not answer in time") from None
    except (OSError, re_errors.ConnectionError) as error:
        raise StoreUnavailableError(
            f"{what}: Redis cannot be reached ({type(error).__name__})", hint="is it up and reachable?"
        ) from None
    except re_errors.RedisError as error:
        text = str(error)
        code = (text.split() or [""])[0]
        if code in _REFUSED:
            raise AuthenticationError(f"{what}: Redis refused the credentials", hint=f"check {key}") from None
        if code in _PASSING or isinstance(
            error, re_errors.OutOfMemoryError | re_errors.ReadOnlyError | re_errors.ClusterDownError
        ):
            raise StoreUnavailableError(f"{what}: Redis answered {code or type(error).__name__}") from None
        raise PermanentError(f"{what}: Redis answered {text[:200]!r}") from None
