"""Owns logging in: by phone, code and password, or by a QR code that the Telegram app scans.

Every question is a coroutine of the caller's; nothing that is answered is kept or logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from telethon import errors
from telethon.sessions import StringSession

from producer.errors import AuthenticationError, RateLimitedError
from producer.sources.telegram.account import make_client, translated

ATTEMPTS = 3
REQUEST_TIMEOUT_S = 60.0
QR_LIFE_S = 25.0  #: a login token lives about 30 s

Ask = Callable[[], Awaitable[str]]


def new_client(api_id: int, api_hash: str, session: StringSession | None = None) -> Any:
    """A client that is not logged in; updates are how it learns that a QR code was scanned."""
    return make_client(session or StringSession(), api_id, api_hash, receive_updates=True)


def session_of(client: Any) -> str:
    """The session string: a secret."""
    return str(client.session.save())


async def by_phone(client: Any, phone: str, ask_code: Ask, ask_password: Ask) -> None:
    """Has a code sent to the account's app or phone, and signs in with it. AuthenticationError where that fails."""
    with translated_login():
        sent = await _in_time(client.send_code_request(phone))
        for attempt in range(ATTEMPTS):
            try:
                await _in_time(client.sign_in(phone, await ask_code(), phone_code_hash=sent.phone_code_hash))
                return
            except errors.SessionPasswordNeededError:
                await _with_password(client, ask_password)
                return
            except errors.PhoneCodeInvalidError:
                if attempt == ATTEMPTS - 1:
                    raise


async def by_qr(client: Any, show: Callable[[str], None], ask_password: Ask, *, wait_s: float) -> None:
    """Shows codes until one is scanned, a new one whenever the last is too old; at most `wait_s` seconds."""
    with translated_login():
        code = await _in_time(client.qr_login())
        give_up_at = asyncio.get_running_loop().time() + wait_s
        while True:
            show(code.url)
            try:
                await code.wait(timeout=QR_LIFE_S)
                return
            except errors.SessionPasswordNeededError:
                await _with_password(client, ask_password)
                return
            except TimeoutError:
                if asyncio.get_running_loop().time() > give_up_at:
                    raise AuthenticationError(f"no code was scanned in {wait_s:.0f} s") from None
                await _in_time(code.recreate())


async def _with_password(client: Any, ask_password: Ask) -> None:
    for attempt in range(ATTEMPTS):
        try:
            await _in_time(client.sign_in(password=await ask_password()))
            return
        except errors.PasswordHashInvalidError:
            if attempt == ATTEMPTS - 1:
                raise


async def _in_time(work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        return await work


class translated_login:
    """Like `translated`, with the mistakes that people make when they log in."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        match error:
            case errors.PhoneNumberInvalidError():
                raise AuthenticationError("this is not a phone number with a Telegram account") from None
            case errors.PhoneCodeInvalidError() | errors.PhoneCodeExpiredError():
                raise AuthenticationError("the code is wrong or too old", hint="start again for a new one") from None
            case errors.PasswordHashInvalidError():
                raise AuthenticationError("the password is wrong") from None
            case errors.FloodWaitError(seconds=seconds):
                message = f"too many attempts to log in: Telegram asks to wait {seconds} s"
                raise RateLimitedError(message, retry_after_s=seconds) from None
            case Exception():
                with translated("logging in"):
                    raise error
