"""Owns the connection of one account: every request has a deadline, every error is one of ours.

Telethon is told to wait for nothing by itself (``flood_sleep_threshold=0``, no request retries): waits belong to the
rate limiter, retries to the engine. It still reconnects and re-sends by itself when the connection drops, and follows
salts and data centres; what it does not notice is an answer that never comes, so a request that misses its deadline
makes the connection anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from telethon import TelegramClient, errors, events, functions, types
from telethon.errors import common
from telethon.sessions import StringSession

from producer import __version__
from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    ConfigError,
    PermanentError,
    ProducerError,
    RateLimitedError,
    SourceUnavailableError,
)
from producer.ratelimit import RateLimiter

log = logging.getLogger(__name__)

#: The stream that the running task asks for, '' for the account as a whole: what is counted is counted for it.
asking_for: ContextVar[str] = ContextVar("asking_for", default="")

CONNECT_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
LOGIN_HINT = "log in again with `producer telegram login` and give the new session"

_UNKNOWN_CHAT = (
    errors.UsernameNotOccupiedError,
    errors.UsernameInvalidError,
    errors.InviteHashExpiredError,
    errors.InviteHashInvalidError,
    errors.InviteHashEmptyError,
    errors.ChannelInvalidError,
    errors.ChatIdInvalidError,
    errors.PeerIdInvalidError,
)
_BROKEN_CONNECTION = (ConnectionError, TimeoutError, OSError, asyncio.IncompleteReadError, common.InvalidBufferError)


def translate(error: Exception, what: str) -> ProducerError:
    """Telethon's or the network's error as one of ours, in one line; `what` says what was asked for."""
    match error:
        case ProducerError():
            return error
        case errors.TakeoutInitDelayError(seconds=seconds):
            hint = "confirm the export in the Telegram app, or set takeout: false"
            return PermanentError(f"a takeout session is allowed in {seconds} s only", hint=hint)
        case errors.FloodWaitError(seconds=seconds) | errors.FloodPremiumWaitError(seconds=seconds):
            return RateLimitedError(f"{what}: Telegram asks to wait {seconds} s", retry_after_s=float(seconds))
        case errors.AuthKeyDuplicatedError():
            message = "the Telegram session was used from two addresses at once, and has been ended for good"
            return AuthenticationError(message, hint=f"{LOGIN_HINT}; run one process a session")
        case errors.UserDeactivatedBanError() | errors.UserDeactivatedError() | errors.PhoneNumberBannedError():
            return AuthenticationError("the Telegram account is banned or deleted", hint="use another account")
        case errors.ApiIdInvalidError() | errors.ConnectionApiIdInvalidError() | errors.ApiIdPublishedFloodError():
            message = "Telegram refuses this api_id and api_hash"
            return AuthenticationError(message, hint="take both from https://my.telegram.org")
        case errors.UnauthorizedError() | errors.AuthKeyError() | common.AuthKeyNotFound():
            return AuthenticationError("the Telegram session is not logged in, or was revoked", hint=LOGIN_HINT)
        case errors.BotMethodInvalidError():
            return AuthenticationError("a bot cannot read the history of a chat", hint="log in as a user")
        case errors.ChannelPrivateError():
            hint = "join it with this account first; a banned account cannot read it"
            return PermanentError(f"{what}: the chat is private and this account is not in it", hint=hint)
        case errors.ForbiddenError() | errors.ChatAdminRequiredError() | errors.UserBannedInChannelError():
            return PermanentError(f"{what}: this account has no permission ({error.message})")
        case _ if isinstance(error, _UNKNOWN_CHAT):
            return ConfigError(f"{what}: there is no such chat", hint="`producer telegram chats` lists those there are")
        case errors.ServerError() | errors.TimedOutError() | errors.RpcCallFailError() | errors.RpcMcgetFailError():
            return SourceUnavailableError(f"{what}: Telegram has an internal error ({error.message})")
        case errors.TypeNotFoundError():
            return PermanentError(
                f"{what}: Telegram answers in a newer form than this Telethon", hint="update telethon"
            )
        case errors.RPCError():
            return PermanentError(f"{what}: Telegram refuses the request ({error.message})")
        case _ if isinstance(error, _BROKEN_CONNECTION):
            return SourceUnavailableError(f"{what}: the connection to Telegram failed ({type(error).__name__})")
        case ValueError() if "unsuccessful" in str(error):
            return SourceUnavailableError(f"{what}: Telegram did not answer")
    raise error


@contextlib.contextmanager
def translated(what: str) -> Any:
    """Raises only our own errors from its body."""
    try:
        yield
    except Exception as error:
        ours = translate(error, what)
        if ours is error:
            raise
        raise ours from None


class _Session(StringSession):  # type: ignore[misc]
    """Keeps no entities: Telethon's own grow with every sender that was ever seen."""

    def process_entities(self, tlo: object) -> None:
        """Nothing is kept; chats are resolved once and held by `chats.Chats`."""


def parse_session(text: str) -> StringSession:
    """The session of a session string; AuthenticationError that does not repeat it."""
    try:
        return _Session(text.strip())
    except Exception:  # whatever struct, base64 and ipaddress make of a wrong string
        raise AuthenticationError("the Telegram session is not a session string", hint=LOGIN_HINT) from None


class Account:
    """One logged-in account: `call` asks once, `ask` waits for its turn first.

    ``on_retry`` is told for which stream and why a request has to be repeated: ``flood_wait``, ``premium_wait``,
    ``timeout``, ``connection`` or ``server_error``. ``listener`` gets every update where updates are wanted.
    """

    def __init__(
        self,
        *,
        api_id: int,
        api_hash: str,
        session: str,
        limiter: RateLimiter,
        request_timeout_s: float = 30.0,
        takeout: bool = False,
        listener: Callable[[Any], None] | None = None,
        on_retry: Callable[[str, str], None] = lambda stream, reason: None,
    ) -> None:
        self.limiter = limiter
        self.me: Any = None
        self._session = parse_session(session)
        self._api = (api_id, api_hash)
        self._request_timeout_s = request_timeout_s
        self._wants_takeout = takeout
        self._takeout_id: int | None = None
        self._listener = listener
        self._on_retry = on_retry
        self._client: Any = None
        self._starting = asyncio.Lock()
        self._connecting = asyncio.Lock()
        self._generation = 0
        self._given_up: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects and proves the session; leaves no connection behind where that fails. Idempotent."""
        async with self._starting:
            if self._given_up is not None:
                await self._given_up
                self._given_up = None
            if self.me is None:
                try:
                    self.me = await self._open()
                except BaseException:
                    await self.close()
                    raise

    async def _open(self) -> Any:
        """Connects, and returns the account's own user."""
        if self._session.auth_key is None:
            raise AuthenticationError("the Telegram session is empty", hint=LOGIN_HINT)
        self._client = make_client(self._session, *self._api, receive_updates=self._listener is not None)
        if self._listener is not None:
            listener = self._listener

            async def deliver(update: Any) -> None:
                listener(update)

            self._client.add_event_handler(deliver, events.Raw)
        await self._connect()
        me = (await self.call(functions.users.GetUsersRequest([types.InputUserSelf()]), "the account"))[0]
        if me.bot:
            raise translate(errors.BotMethodInvalidError(None), "the account")
        if self._wants_takeout:
            request = functions.account.InitTakeoutSessionRequest(
                message_users=True, message_chats=True, message_megagroups=True, message_channels=True
            )
            self._takeout_id = (await self.ask(request, "takeout")).id
        return me

    def give_up(self) -> None:
        """Closes the connection, and fails whatever is asked until the next `start`."""
        if self._given_up is None:
            self._given_up = asyncio.create_task(self.close())

    async def close(self) -> None:
        """Ends a takeout session and the connection, in bounded time."""
        client, self._client, self.me = self._client, None, None
        if client is None:
            return
        with contextlib.suppress(TimeoutError, ConnectionError, errors.RPCError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if self._takeout_id is not None and client.is_connected():
                    finish = functions.account.FinishTakeoutSessionRequest(success=True)
                    await client(functions.InvokeWithTakeoutRequest(self._takeout_id, finish))
        self._takeout_id = None
        await disconnect(client)

    async def ask(self, request: Any, what: str, *, at_most_s: float = 60.0) -> Any:
        """Waits for a turn, then asks. RateLimitedError when the turn is more than `at_most_s` seconds away."""
        kind = type(request).__name__
        left_s = await self.limiter.acquire(kind, at_most_s=at_most_s)
        if left_s > 0:
            raise RateLimitedError(f"{what}: the next request is allowed in {left_s:.0f} s", retry_after_s=left_s)
        return await self.call(request, what)

    async def call(self, request: Any, what: str) -> Any:
        """Asks at once and returns the answer, within ``request_timeout_s``; tells the limiter how it went."""
        kind = type(request).__name__
        if self._takeout_id is not None and kind.startswith("GetHistory"):
            request = functions.InvokeWithTakeoutRequest(self._takeout_id, request)
        return await self._answered(lambda client: client(request), what, kind, self._request_timeout_s)

    async def download(self, method: str, subject: Any, what: str, *, timeout_s: float) -> bytes | None:
        """What a method of Telethon's client downloads of `subject`; None where there is nothing."""
        found: bytes | None = await self._answered(
            lambda client: getattr(client, method)(subject, file=bytes), what, "GetFileRequest", timeout_s
        )
        return found

    async def _answered(self, ask: Callable[[Any], Awaitable[Any]], what: str, kind: str, timeout_s: float) -> Any:
        with translated(what):
            try:
                async with self._deadline(what, timeout_s):
                    answer = await ask(self._client)
            except errors.FloodWaitError as error:
                self._told_to_wait("flood_wait", error.seconds, kind)
                raise
            except errors.FloodPremiumWaitError as error:
                self._told_to_wait("premium_wait", error.seconds, kind)
                raise
            except errors.ServerError:
                self._on_retry(asking_for.get(), "server_error")
                raise
        self.limiter.succeeded()
        return answer

    def _told_to_wait(self, reason: str, seconds: int, kind: str) -> None:
        self._on_retry(asking_for.get(), reason)
        self.limiter.ordered_to_wait(float(max(1, seconds)), kind)
        log.warning("Telegram asks to wait %d s before the next %s (%s)", seconds, kind, reason)

    @contextlib.asynccontextmanager
    async def _deadline(self, what: str, timeout_s: float) -> AsyncIterator[None]:
        """The deadline of one request; a miss, or a connection that is gone, costs the connection."""
        await self._connect()
        generation = self._generation
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            self._on_retry(asking_for.get(), "timeout")
            await self._reset(generation)
            raise SourceUnavailableError(f"{what}: no answer within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # not we were cancelled: somebody else's missed deadline reset the connection under this request
            self._on_retry(asking_for.get(), "connection")
            raise SourceUnavailableError(f"{what}: the connection was made anew") from None
        except (ConnectionError, asyncio.IncompleteReadError):
            self._on_retry(asking_for.get(), "connection")
            await self._reset(generation)
            raise

    async def _connect(self) -> None:
        """Connects where there is no connection."""
        if self._given_up is not None:
            raise CheckpointConflictError("the Telegram session may be used by another worker by now")
        if self._client is None:
            raise SourceUnavailableError("the Telegram source has been closed")
        if self._client.is_connected():
            return
        async with self._connecting:
            if self._client is not None and not self._client.is_connected():
                await connect(self._client)

    async def _reset(self, generation: int) -> None:
        """Drops the connection, unless somebody has done so since `generation`; the next request makes a new one."""
        async with self._connecting:
            if generation == self._generation and self._client is not None:
                self._generation += 1
                await disconnect(self._client)


def make_client(session: Any, api_id: int, api_hash: str, *, receive_updates: bool) -> Any:
    """A Telethon client that neither sleeps nor retries behind our back."""
    return TelegramClient(
        session,
        api_id,
        api_hash,
        receive_updates=receive_updates,
        flood_sleep_threshold=0,
        request_retries=0,
        raise_last_call_error=True,
        connection_retries=2,
        retry_delay=1,
        timeout=10,
        device_model="producer",
        system_version="1",
        app_version=__version__,
    )


async def connect(client: Any) -> None:
    """Connects, within a deadline; leaves nothing half open."""
    try:
        with translated("connecting"):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect()
    except BaseException:
        await disconnect(client)
        raise


async def disconnect(client: Any) -> None:
    """Disconnects; whatever the connection's last state makes of that is of no interest any more."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await client.disconnect()
    # the error that ended the connection was told where it was met; unread, the event loop would print it as well
    client.disconnected.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
