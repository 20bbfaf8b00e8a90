"""Owns how a chat is named and found: @name, link, numeric id, or id:access_hash; and what became of it.

A name is resolved once and kept with its access hash, since asking again draws the longest flood waits. A numeric id
means nothing to a fresh session until its chat is known, so it is looked up in the account's list of chats.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from telethon import functions, types

from producer.errors import ConfigError, PermanentError
from producer.sources.telegram.account import Account

CHANNEL_MARK = 1_000_000_000_000
DIALOGS_PER_REQUEST = 100


@dataclass(frozen=True, slots=True)
class Chat:
    """One chat as it can be asked for. `marked_id` carries the kind in its sign and prefix, as in Telegram clients."""

    marked_id: int
    peer: Any  # the InputPeer
    kind: str  # channel, supergroup, group or user
    title: str
    username: str | None = None

    @property
    def access_hash(self) -> int | None:
        return getattr(self.peer, "access_hash", None)

    @property
    def reference(self) -> str:
        """What a configuration can name it by for ever, without any look-up by name."""
        return str(self.marked_id) if self.access_hash is None else f"{self.marked_id}:{self.access_hash}"

    def link(self, message_id: int) -> str | None:
        """The message's public (or members') address; None where there is no such thing."""
        prefix = self.link_prefix
        return None if prefix is None else f"{prefix}{message_id}"

    @property
    def link_prefix(self) -> str | None:
        if self.kind not in ("channel", "supergroup"):
            return None
        return f"https://t.me/{self.username or f'c/{-self.marked_id - CHANNEL_MARK}'}/"


def marked_id(peer: Any) -> int | None:
    """The id of a Peer, InputPeer, User, Chat or Channel with its kind in sign and prefix; None for anything else."""
    if isinstance(peer, types.User):
        return int(peer.id)
    if isinstance(peer, types.Chat | types.ChatForbidden):
        return -int(peer.id)
    if isinstance(peer, types.Channel | types.ChannelForbidden):
        return -CHANNEL_MARK - int(peer.id)
    if (channel_id := getattr(peer, "channel_id", None)) is not None:
        return -CHANNEL_MARK - int(channel_id)
    if (chat_id := getattr(peer, "chat_id", None)) is not None:
        return -int(chat_id)
    user_id = getattr(peer, "user_id", None)
    return None if user_id is None else int(user_id)


def display_name(entity: Any) -> str:
    """A person's name or a chat's title."""
    title = getattr(entity, "title", None)
    if title is not None:
        return str(title)
    return " ".join(part for part in (getattr(entity, "first_name", None), getattr(entity, "last_name", None)) if part)


def username_of(entity: Any) -> str | None:
    """The first active public name."""
    if name := getattr(entity, "username", None):
        return str(name)
    return next((str(u.username) for u in getattr(entity, "usernames", None) or () if u.active), None)


def chat_of(entity: Any) -> Chat | None:
    """The entity as a chat that can be read; None where the server tells too little (no access hash) or forbids it."""
    number = marked_id(entity)
    match entity:
        case types.User(access_hash=int(access_hash)) if number is not None:
            return Chat(
                number, types.InputPeerUser(entity.id, access_hash), "user", display_name(entity), username_of(entity)
            )
        case types.Chat() if number is not None:
            return Chat(number, types.InputPeerChat(entity.id), "group", entity.title)
        case types.Channel(access_hash=int(access_hash)) if number is not None:
            kind = "supergroup" if entity.megagroup or entity.gigagroup else "channel"
            peer = types.InputPeerChannel(entity.id, access_hash)
            return Chat(number, peer, kind, entity.title, username_of(entity))
    return None


class Chats:
    """Resolves references for one account and remembers what it found."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._found: dict[str, Chat] = {}
        self._listed: list[Chat] | None = None
        self._listing = asyncio.Lock()

    async def resolve(self, reference: str | int) -> Chat:
        """The chat of a reference; ConfigError where there is none, PermanentError where it cannot be read."""
        text = str(reference).strip()
        if text not in self._found:
            self._found[text] = await self._look_up(text)
        return self._found[text]

    async def _look_up(self, text: str) -> Chat:
        what = f"chat {text}"
        link = re.fullmatch(r"(?:https?://)?(?:www\.)?(?:t|telegram)\.me/(.+?)/?", text)
        name = link[1] if link else text
        if match := re.fullmatch(r"(?:\+|joinchat/)([\w-]+)", name) if link else None:
            return self._readable(await self._invited(match[1]), "chat of the invitation link")
        if link and (match := re.fullmatch(r"c/(\d+)(?:/\d+)*", name)):
            return await self._by_id(-CHANNEL_MARK - int(match[1]), what)
        if match := re.fullmatch(r"(-?\d+):(-?\d+)", name):
            return await self._by_hash(int(match[1]), int(match[2]), what)
        if re.fullmatch(r"-?\d+", name):
            return await self._by_id(int(name), what)
        if match := re.fullmatch(r"@?([A-Za-z]\w{2,})(?:/\d+)*", name):
            answer = await self._account.ask(functions.contacts.ResolveUsernameRequest(match[1]), what)
            wanted = marked_id(answer.peer)
            entities = [*answer.chats, *answer.users]
            return self._readable(next((e for e in entities if marked_id(e) == wanted), None), what)
        raise ConfigError(f"{what}: not a chat", hint="@name, a t.me link, a numeric id, or id:access_hash")

    async def _invited(self, invite: str) -> Any:
        what = "chat of the invitation link"
        answer = await self._account.ask(functions.messages.CheckChatInviteRequest(invite), what)
        if isinstance(answer, types.ChatInvite):
            raise PermanentError(f"{what}: this account has not joined {answer.title!r}", hint="join it first")
        return answer.chat

    async def _by_hash(self, number: int, access_hash: int, what: str) -> Chat:
        if number > 0:
            answer = await self._account.ask(
                functions.users.GetUsersRequest([types.InputUser(number, access_hash)]), what
            )
            return self._readable(answer[0] if answer else None, what)
        channel = types.InputChannel(-number - CHANNEL_MARK if number < -CHANNEL_MARK else -number, access_hash)
        answer = await self._account.ask(functions.channels.GetChannelsRequest([channel]), what)
        return self._readable(answer.chats[0] if answer.chats else None, what)

    async def _by_id(self, number: int, what: str) -> Chat:
        """By marked id; a positive number may also be a chat's id without its mark, as clients show it."""
        if -CHANNEL_MARK < number < 0:
            answer = await self._account.ask(functions.messages.GetChatsRequest([-number]), what)
            return self._readable(answer.chats[0] if answer.chats else None, what)
        chats = [chat async for chat in self.listed()]
        candidates = [number] if number < 0 else [number, -CHANNEL_MARK - number, -number]
        for candidate in candidates:
            for chat in chats:
                if chat.marked_id == candidate:
                    return chat
        hint = "join it first, or name it as @name or id:access_hash"
        raise ConfigError(f"{what}: not among the {len(chats)} chats of this account", hint=hint)

    @staticmethod
    def _readable(entity: Any, what: str) -> Chat:
        if isinstance(entity, types.ChannelForbidden | types.ChatForbidden):
            raise PermanentError(
                f"{what}: this account was removed from {entity.title!r}", hint="ask to be let in again"
            )
        chat = chat_of(entity)
        if chat is None:
            raise ConfigError(f"{what}: there is no such chat", hint="`producer telegram chats` lists those there are")
        return chat

    async def listed(self) -> AsyncIterator[Chat]:
        """All chats of the account, newest first: one sweep in a process's life, since sweeps draw flood waits."""
        async with self._listing:
            if self._listed is None:
                self._listed = [chat async for chat in self._sweep()]
        for chat in self._listed:
            yield chat

    async def _sweep(self) -> AsyncIterator[Chat]:
        offset_date, offset_id, offset_peer = None, 0, types.InputPeerEmpty()
        seen: set[int] = set()
        while True:
            request = functions.messages.GetDialogsRequest(
                offset_date, offset_id, offset_peer, DIALOGS_PER_REQUEST, 0, exclude_pinned=False
            )
            answer = await self._account.ask(request, "list of chats")
            entities = {marked_id(e): e for e in (*answer.chats, *answer.users)}
            fresh = False
            for dialog in answer.dialogs:
                number = marked_id(dialog.peer)
                if number is None or number in seen:
                    continue
                seen.add(number)
                fresh = True
                if (chat := chat_of(entities.get(number))) is not None:
                    yield chat
            if not fresh or isinstance(answer, types.messages.Dialogs):
                return
            last = answer.dialogs[-1]
            tops = {(marked_id(m.peer_id), m.id): m for m in answer.messages}
            message = tops.get((marked_id(last.peer), last.top_message))
            offset_date, offset_id = getattr(message, "date", None), last.top_message
            known = chat_of(entities.get(marked_id(last.peer)))
            offset_peer = types.InputPeerEmpty() if known is None else known.peer

    async def succession(self, chat: Chat) -> tuple[Chat, ...]:
        """The chat with what it was before or has become: (group, supergroup) after a migration, else it alone."""
        if chat.kind == "group":
            successor = await self.successor(chat)
            return (chat,) if successor is None else (chat, successor)
        if chat.kind == "supergroup":
            channel = types.InputChannel(chat.peer.channel_id, chat.peer.access_hash)
            full = await self._account.ask(functions.channels.GetFullChannelRequest(channel), f"chat {chat.title!r}")
            if former := full.full_chat.migrated_from_chat_id:
                before = Chat(-former, types.InputPeerChat(former), "group", chat.title)
                return (before, chat)
        return (chat,)

    async def successor(self, group: Chat) -> Chat | None:
        """The supergroup that a basic group has become; None while it is a basic group."""
        what = f"chat {group.title!r}"
        answer = await self._account.ask(functions.messages.GetChatsRequest([group.peer.chat_id]), what)
        to = next(
            (c.migrated_to for c in answer.chats if marked_id(c) == group.marked_id and isinstance(c, types.Chat)), None
        )
        if to is None or not isinstance(to, types.InputChannel):
            return None
        return await self._by_hash(-CHANNEL_MARK - to.channel_id, to.access_hash, what)


def matching(chats: Iterable[Chat], pattern: str) -> list[Chat]:
    """The chats whose title, public name or id contains the pattern (a regular expression, any case)."""
    try:
        wanted = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is not a regular expression: {error}") from None
    return [
        c for c in chats if wanted.search(c.title) or wanted.search(c.username or "") or wanted.search(str(c.marked_id))
    ]
