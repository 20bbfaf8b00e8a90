"""Owns the pretended account: users, chats and their messages, made from their ids so that a million cost little.

A history is a list of ids; what a message looks like follows from its id (`kind_of`), so a test knows every expected
value without keeping it. Single messages can be replaced, added or deleted while the server runs.
"""

from __future__ import annotations

import bisect
import datetime as dt
import functools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from telethon.tl import types

UTC = dt.UTC
EPOCH = dt.datetime(2024, 1, 1, tzinfo=UTC)
STEP_S = 60  #: seconds between two messages of a made history
LAST_DATED = 7_000_000  #: dates are 32 bit: later messages have the date of this one
ME_ID = 777000777
SENDERS = tuple(range(5001, 5011))
KINDS = ("text", "reply", "photo", "document", "forward", "service", "entities", "reactions", "edited", "topic")


def date_of(message_id: int) -> dt.datetime:
    """When the made message was sent: `STEP_S` after the one before, to the end of what the protocol can say."""
    return EPOCH + dt.timedelta(seconds=min(message_id, LAST_DATED) * STEP_S)


def kind_of(message_id: int) -> str:
    """What the made message is; every third is plain text, the others go through `KINDS`."""
    return "text" if message_id % 3 else KINDS[message_id // 3 % len(KINDS)]


def text_of(message_id: int) -> str:
    return f"message {message_id:010d} до свидания"


def sender_of(message_id: int) -> int:
    return SENDERS[message_id % len(SENDERS)]


def user(user_id: int) -> types.User:
    return types.User(
        user_id,
        is_self=user_id == ME_ID or None,
        access_hash=user_id * 7,
        first_name=f"User{user_id}",
        last_name="Sender",
        username=f"user{user_id}",
    )


@functools.lru_cache(maxsize=64)
def _user_bytes(user_id: int) -> bytes:
    return bytes(user(user_id))


class Raw:
    """A TL object that has been written already; stands where Telethon's writers ask for ``_bytes``."""

    __slots__ = ("_data", "users")

    def __init__(self, data: bytes, users: Sequence[int] = ()) -> None:
        self._data = data
        self.users = users

    def _bytes(self) -> bytes:
        return self._data


def build(message_id: int, peer: Any, *, kind: str | None = None, text: str | None = None, **more: Any) -> Any:
    """The TL message of this id, as an object: the truth that the quick templates below are made from."""
    kind = kind or kind_of(message_id)
    base: dict[str, Any] = {
        "peer_id": peer,
        "date": date_of(message_id),
        "from_id": types.PeerUser(sender_of(message_id)),
    }
    text = text_of(message_id) if text is None else text
    match kind:
        case "service":
            return types.MessageService(message_id, action=types.MessageActionPinMessage(), **base)
        case "reply":
            base["reply_to"] = types.MessageReplyHeader(reply_to_msg_id=1, reply_to_top_id=None)
        case "topic":
            base["reply_to"] = types.MessageReplyHeader(forum_topic=True, reply_to_msg_id=4, reply_to_top_id=2)
        case "photo":
            sizes = [types.PhotoSize("m", 320, 240, 9000), types.PhotoSize("y", 1280, 960, 120000)]
            base["media"] = types.MessageMediaPhoto(photo=types.Photo(91, 92, b"ref", EPOCH, sizes, 2))
        case "document":
            attributes = [types.DocumentAttributeFilename("clip.mp4"), types.DocumentAttributeVideo(12.5, 640, 480)]
            document = types.Document(81, 82, b"ref", EPOCH, "video/mp4", 4321, 2, attributes)
            base["media"] = types.MessageMediaDocument(video=True, document=document)
        case "forward":
            base["fwd_from"] = types.MessageFwdHeader(
                EPOCH, from_id=types.PeerChannel(4242), channel_post=17, post_author="An Author"
            )
        case "entities":
            base["entities"] = [
                types.MessageEntityBold(0, 7),
                types.MessageEntityTextUrl(8, 10, "https://example.org/"),
            ]
        case "reactions":
            counts = [types.ReactionCount(types.ReactionEmoji("👍"), 3)]
            base |= {"reactions": types.MessageReactions(counts), "views": 12, "forwards": 2}
            base["replies"] = types.MessageReplies(5, 1)
        case "edited":
            base["edit_date"] = dt.datetime(2025, 6, 1, tzinfo=UTC)
    return types.Message(message_id, message=text, **(base | more))


@dataclass(frozen=True, slots=True)
class _Template:
    data: bytes
    id_at: int
    date_at: int
    text_at: int | None


_MARK_ID, _MARK_DATE, _MARK_TEXT = 0x7A5B3C1D, dt.datetime(2037, 3, 3, 3, 3, 3, tzinfo=UTC), "message 9876543210"


@functools.lru_cache(maxsize=4096)
def _template(kind: str, sender: int, peer: bytes) -> _Template:
    mark = (
        build(_MARK_ID, Raw(peer), kind=kind, text=text_of(9876543210), date=_MARK_DATE, from_id=types.PeerUser(sender))
        if kind != "service"
        else types.MessageService(
            _MARK_ID, Raw(peer), date=_MARK_DATE, from_id=types.PeerUser(sender), action=types.MessageActionPinMessage()
        )
    )
    data = bytes(mark)
    text_at = data.find(_MARK_TEXT.encode())
    return _Template(
        data,
        data.index(struct.pack("<i", _MARK_ID)),
        data.index(struct.pack("<i", int(_MARK_DATE.timestamp()))),
        text_at + len("message ") if text_at >= 0 else None,
    )


def quick(message_id: int, peer: bytes) -> Raw:
    """What `build` makes, by filling in a template: about 1 us instead of 50."""
    sender = sender_of(message_id)
    template = _template(kind_of(message_id), sender, peer)
    data = bytearray(template.data)
    struct.pack_into("<i", data, template.id_at, message_id)
    struct.pack_into("<i", data, template.date_at, int(EPOCH.timestamp()) + min(message_id, LAST_DATED) * STEP_S)
    if template.text_at is not None:
        data[template.text_at : template.text_at + 10] = b"%010d" % message_id
    return Raw(bytes(data), (sender,))


@dataclass
class Chat:
    """One chat and its history. `kind`: channel, megagroup, forum, group (basic) or user (private)."""

    id: int
    kind: str = "megagroup"
    title: str = "A chat"
    username: str | None = None
    invite: str | None = None
    ids: list[int] = field(default_factory=list)
    special: dict[int, Any] = field(default_factory=dict)
    migrated_to: int | None = None
    migrated_from: int | None = None
    migrated_from_max_id: int = 0
    refuses: str | None = None  #: the error of every request for this chat, such as CHANNEL_PRIVATE
    pts: int = 1

    def __post_init__(self) -> None:
        self.ids = sorted(self.ids)
        self._peer_bytes = bytes(self.peer)

    @property
    def peer(self) -> Any:
        match self.kind:
            case "group":
                return types.PeerChat(self.id)
            case "user":
                return types.PeerUser(self.id)
        return types.PeerChannel(self.id)

    @property
    def access_hash(self) -> int:
        return self.id * 31

    @property
    def marked_id(self) -> int:
        """The id with the kind in its sign and prefix, as users of Telegram clients know it."""
        match self.kind:
            case "group":
                return -self.id
            case "user":
                return self.id
        return -1000000000000 - self.id

    def entity(self) -> Any:
        photo = types.ChatPhotoEmpty()
        if self.kind == "user":
            return user(self.id)
        if self.kind == "group":
            to = types.InputChannel(self.migrated_to, self.migrated_to * 31) if self.migrated_to else None
            return types.Chat(self.id, self.title, photo, 2, EPOCH, 1, deactivated=bool(to) or None, migrated_to=to)
        return types.Channel(
            self.id,
            self.title,
            photo,
            EPOCH,
            broadcast=self.kind == "channel" or None,
            megagroup=self.kind in ("megagroup", "forum") or None,
            forum=self.kind == "forum" or None,
            access_hash=self.access_hash,
            username=self.username,
        )

    def message(self, message_id: int) -> Any:
        """The message as it goes over the wire: something with ``_bytes`` and ``users``."""
        special = self.special.get(message_id)
        if special is None:
            return quick(message_id, self._peer_bytes)
        sender = getattr(special, "from_id", None)
        return Raw(special._bytes(), (sender.user_id,) if isinstance(sender, types.PeerUser) else ())

    def window(self, offset_id: int, offset_date: int, add_offset: int, limit: int, *, shift: bool) -> tuple[int, int]:
        """Bounds in `ids` of an answer, ascending; `shift` moves a short last page down over rows seen before."""
        if offset_id:
            at = bisect.bisect_left(self.ids, offset_id)
        elif offset_date:
            at = bisect.bisect_left(self.ids, offset_date, key=lambda i: int(self._date(i).timestamp()))
        else:
            at = len(self.ids)
        high = at - add_offset
        low = high - limit
        if shift and high > len(self.ids):
            low, high = len(self.ids) - limit, len(self.ids)
        return max(0, low), max(0, min(high, len(self.ids)))

    def _date(self, message_id: int) -> dt.datetime:
        special = self.special.get(message_id)
        return date_of(message_id) if special is None or special.date is None else special.date

    # --- what happens in the chat while somebody reads ---

    def append(self, count: int = 1) -> list[int]:
        """New messages after the newest; their ids."""
        first = (self.ids[-1] if self.ids else 0) + 1
        new = list(range(first, first + count))
        self.ids.extend(new)
        return new

    def put(self, message: Any) -> None:
        """Adds or replaces one message by an object of one's own."""
        at = bisect.bisect_left(self.ids, message.id)
        if at == len(self.ids) or self.ids[at] != message.id:
            self.ids.insert(at, message.id)
        self.special[message.id] = message

    def edit(self, message_id: int, text: str, when: dt.datetime) -> None:
        """A person edits a message."""
        self.put(build(message_id, self.peer, kind="text", text=text, edit_date=when))

    def react(self, message_id: int, when: dt.datetime) -> None:
        """A first reaction: the server sets edit_date with edit_hide and changes nothing that was written."""
        counts = types.MessageReactions([types.ReactionCount(types.ReactionEmoji("👍"), 1)])
        self.put(build(message_id, self.peer, kind="text", edit_date=when, edit_hide=True, reactions=counts))

    def delete(self, ids: Iterable[int]) -> None:
        """Deletes for everybody: leaves holes."""
        gone = set(ids)
        self.ids = [i for i in self.ids if i not in gone]
        for i in gone:
            self.special.pop(i, None)

    def empty(self, ids: Iterable[int]) -> None:
        """Turns messages into MessageEmpty, which the server still lists."""
        for i in ids:
            self.special[i] = types.MessageEmpty(i, peer_id=self.peer)


def made_chat(chat_id: int, count: int, **fields: Any) -> Chat:
    """A chat with the ids 1 to `count`."""
    return Chat(chat_id, ids=list(range(1, count + 1)), **fields)


@dataclass
class World:
    """All chats of the account that the server knows."""

    chats: list[Chat] = field(default_factory=list)
    hidden_users: frozenset[int] = frozenset()  #: senders that no answer describes
    scanned: bool = False  #: whether somebody has scanned the login code

    def by_input_peer(self, peer: Any) -> Chat | None:
        number = getattr(peer, "channel_id", None) or getattr(peer, "chat_id", None) or getattr(peer, "user_id", None)
        kinds = {"InputPeerChat": ("group",), "InputPeerUser": ("user",)}.get(
            type(peer).__name__, ("channel", "megagroup", "forum")
        )
        return next((c for c in self.chats if c.id == number and c.kind in kinds), None)

    def by_name(self, name: str) -> Chat | None:
        return next((c for c in self.chats if c.username and c.username.lower() == name.lower()), None)

    def users_of(self, messages: Iterable[Any]) -> list[Raw]:
        """The users that the answer describes, as the real server adds them."""
        wanted = {u for m in messages for u in m.users} - self.hidden_users
        return [Raw(_user_bytes(u)) for u in sorted(wanted)]
