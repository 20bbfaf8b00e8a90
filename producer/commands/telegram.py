"""Owns ``producer telegram``: logging in to get a session, and listing the chats that an account can read."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import sys
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.errors import AuthenticationError, ConfigError

if TYPE_CHECKING:
    from producer.sources.telegram.chats import Chat

QR_WAIT_S = 300.0


def add_parser(subparsers: Any) -> None:
    text = "log in to Telegram, and list the chats that can be read"
    parser = subparsers.add_parser("telegram", help=text, description=text)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "log in and print a session string on stdout: keep it as a secret, it is the account"
    login = actions.add_parser("login", help=text, description=text)
    login.add_argument("--api-id", type=int, help="from https://my.telegram.org (default: TELEGRAM_API_ID)")
    login.add_argument("--api-hash", help="default: TELEGRAM_API_HASH, else asked for")
    login.add_argument("--phone", help="default: asked for")
    login.add_argument("--qr", action="store_true", help="scan a code with the Telegram app instead of a phone number")
    options.add_debug(login)
    login.set_defaults(run=run_login)
    text = "list the chats of a configured account, with the name to put into `chat:`"
    chats = actions.add_parser("chats", help=text, description=text)
    options.add_config(chats)
    chats.add_argument("--source", help="the source's name (default: the only Telegram source)")
    chats.add_argument("--match", default="", metavar="PATTERN", help="only titles, names or ids with this in them")
    options.add_json(chats)
    chats.set_defaults(run=run_chats)


def run_login(args: argparse.Namespace) -> int:
    from producer.logs import configure_logs

    configure_logs("error")  # the client library's own notes about the connection are no help here
    api_id = args.api_id or os.environ.get("TELEGRAM_API_ID")
    if not str(api_id or "").isdigit():
        raise ConfigError("--api-id is missing, or not a number", hint="get one at https://my.telegram.org")
    api_hash = args.api_hash or os.environ.get("TELEGRAM_API_HASH") or getpass.getpass("api_hash: ")
    try:
        session = asyncio.run(_login(int(str(api_id)), api_hash, args.phone, qr=args.qr))
    except EOFError:
        raise AuthenticationError("nothing to read an answer from", hint="log in from a terminal") from None
    _tell("Logged in. The next line is the session: whoever has it, has the account.")
    options.say(session)
    return 0


async def _login(api_id: int, api_hash: str, phone: str | None, *, qr: bool) -> str:
    from producer.sources.telegram import login
    from producer.sources.telegram.account import connect, disconnect

    client = login.new_client(api_id, api_hash)
    await connect(client)
    try:
        if qr:
            await login.by_qr(client, _show_qr, _ask_password, wait_s=QR_WAIT_S)
        else:
            if phone is None:
                phone = await asyncio.to_thread(input, "phone number (+...): ")
            await login.by_phone(client, phone, _ask_code, _ask_password)
        return login.session_of(client)
    finally:
        await disconnect(client)


async def _ask_code() -> str:
    return await asyncio.to_thread(getpass.getpass, "code that Telegram has sent: ")


async def _ask_password() -> str:
    return await asyncio.to_thread(getpass.getpass, "password of the account's two-step verification: ")


def _show_qr(url: str) -> None:
    import segno

    segno.make(url, error="L", micro=False).terminal(out=sys.stderr, compact=True)
    _tell("Scan it: Telegram app, Settings, Devices, Link Desktop Device.")


def _tell(text: str) -> None:
    """To people, not to what reads the session from stdout."""
    sys.stderr.write(text + "\n")


def run_chats(args: argparse.Namespace) -> int:
    config = options.load(args)
    names = [name for name, source in config.sources.items() if source.type == "telegram"]
    if args.source is None and len(names) != 1:
        raise ConfigError(f"--source is needed: there are {len(names)} Telegram sources", hint=", ".join(names))
    name = args.source or names[0]
    if name not in names:
        raise ConfigError(f"--source: {name!r} is not a Telegram source", hint=", ".join(names) or "there is none")
    found = asyncio.run(_chats(config.sources[name], args.match))
    if args.json:
        keys = ("chat", "kind", "title", "username", "id")
        options.say_json([dict(zip(keys, _row(chat), strict=True)) for chat in found])
    else:
        options.say_table(("CHAT", "KIND", "TITLE", "NAME"), [_row(chat)[:4] for chat in found])
    return 0


def _row(chat: Chat) -> tuple[str, str, str, str | None, int]:
    return chat.reference, chat.kind, chat.title, chat.username and f"@{chat.username}", chat.marked_id


async def _chats(settings: Any, pattern: str) -> list[Chat]:
    from producer.sources.telegram import TelegramSource
    from producer.sources.telegram.chats import matching

    source = TelegramSource(settings)
    await source.start()
    try:
        return matching([chat async for chat in source.chats.listed()], pattern)
    finally:
        await options.close(source)
