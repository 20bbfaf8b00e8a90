"""Owns ``producer pause``, ``resume`` and ``replay``: what an operator asks of a run that is going on, over HTTP.

A run is named by its URL (the token then in ``PRODUCER_TOKEN``) or by its configuration (``http.host``, ``port`` and
``token``).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import ipaddress
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from producer.commands import options
from producer.errors import ConfigError, PermanentError, SourceUnavailableError
from producer.urls import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from producer.config import Config

_WRONG_ARGUMENTS = (400, 404)
_TIMEOUT_S = 20.0  # longer than the run takes to say that its store is away


@dataclass(frozen=True, slots=True)
class Address:
    """Where a run answers (``http://host:port``, or https), its token, and the `app` that it should be of, if known.

    Where the port was taken by another producer's run when ours began, ours has chosen one of its own.
    """

    base: str
    token: str | None = None
    app: str | None = None


def add_parser(subparsers: Any) -> None:
    for name, text in (
        ("pause", "stop a stream's reading, also after a restart"),
        ("resume", "let a paused stream read on"),
        ("replay", "read a range of a stream's rows once more, beside what goes on"),
    ):
        parser = subparsers.add_parser(name, help=text, description=text)
        options.add_config(parser, or_url=True)
        parser.add_argument("stream", metavar="STREAM")
        if name == "replay":
            parser.add_argument("--from", dest="first", metavar="VALUE", help="the first key, or time (included)")
            parser.add_argument("--to", dest="last", metavar="VALUE", help="the last one (included)")
            parser.add_argument("--column", help="the column of the range, such as updated_at (default: the key)")
        options.add_json(parser)
        parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    body: dict[str, str] | None = None
    if args.command == "replay":
        given = {"from": args.first, "to": args.last, "column": args.column}
        body = {key: value for key, value in given.items() if value is not None}
        if args.first is None and args.last is None:
            raise ConfigError(
                "neither --from nor --to is given", hint="producer replay CONFIG STREAM --from 100 --to 200"
            )
    address = address_of(args)
    if address.app is not None:
        refuse_other_app(address, ask(address, "GET", "/streams"))
    told = ask(address, "POST", f"/streams/{quote(args.stream, safe='')}/{args.command}", body)
    if args.json:
        options.say_json(told)
    elif args.command == "replay":
        options.say(f"{args.stream}: {told['split']} has begun; producer status shows how far it is")
    else:
        options.say(f"{args.stream}: {told['state']}")
    return 0


def address_of(args: argparse.Namespace) -> Address:
    """Where the run that `args.config` names answers: a URL, or a configuration file."""
    if is_url(args.config):
        what = "the run's address" if "@" in args.config else args.config  # a password is in front of an @
        url = parse(args.config, f"{what} is not a URL", example="http://HOST:PORT")
        return Address(f"{url.scheme}://{url.authority}", os.environ.get("PRODUCER_TOKEN"))
    config = options.load(args)
    if (stream := getattr(args, "stream", None)) is not None:
        options.stream_named(config, stream)
    address = configured(config)
    if address is None:
        raise ConfigError(
            "http.port is 0: the run has chosen a port of its own", hint="give its URL, which it has logged"
        )
    return address


def refuse_other_app(address: Address, told: Mapping[str, Any]) -> None:
    """ConfigError where the answer to ``/streams`` is of a run of another configuration."""
    if told.get("app") != address.app:
        raise ConfigError(
            f"at {address.base} answers the run of app {str(told.get('app'))!r}, not of {address.app!r}",
            hint="give the URL that the run has logged, or set http.port",
        )


def is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def configured(config: Config) -> Address | None:
    """Where a run of this configuration answers, if that can be known."""
    if config.http.port == 0:
        return None
    host = config.http.host
    with contextlib.suppress(ValueError):  # a name
        if (address := ipaddress.ip_address(host)).is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    token = config.http.token.get_secret_value() if config.http.token is not None else None
    return Address(f"http://{f'[{host}]' if ':' in host else host}:{config.http.port}", token, config.app)


def ask(address: Address, method: str, path: str, body: Any = None, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
    """The answer's JSON object. SourceUnavailableError where nobody answers; ConfigError where what is asked for cannot
    be, such as a stream that is not there; PermanentError for another refusal."""
    url = urlsplit(address.base)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if address.token is not None:
        headers["Authorization"] = f"Bearer {address.token}"
    try:
        connection = kind(url.hostname or "", url.port, timeout=timeout_s)
    except ValueError:
        raise ConfigError(f"{address.base} is not a URL", hint="http://HOST:PORT") from None
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if not isinstance(told, dict):
            raise ValueError
    except (OSError, http.client.HTTPException, ValueError):
        raise SourceUnavailableError(f"no producer answers at {address.base}", hint="is it running?") from None
    finally:
        connection.close()
    if answer.status >= 400:
        kind_of_error = ConfigError if answer.status in _WRONG_ARGUMENTS else PermanentError
        raise kind_of_error(str(told.get("error", answer.reason)), hint=str(told.get("hint", "")))
    return told
