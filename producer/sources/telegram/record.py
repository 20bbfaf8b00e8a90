"""Owns the message record: one table of fields makes the Arrow schema, the Avro schema and the columns.

What is rich and changes with Telegram's layers (formatting, reactions, a service message's details) is JSON text, so
that a new kind of it never changes the record. ``schemas/telegram_message.avsc`` is a copy of `avro_schema`, kept
equal by a test.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from telethon import types

from producer.sources.telegram.chats import CHANNEL_MARK, Chat, display_name, marked_id, username_of

_TIMESTAMP = pa.timestamp("ms", tz="UTC")
_AVRO = {
    pa.int64(): "long",
    pa.int32(): "int",
    pa.bool_(): "boolean",
    pa.string(): "string",
    pa.float64(): "double",
    _TIMESTAMP: {"type": "long", "logicalType": "timestamp-millis"},
}

_NUMPY = {pa.int32(): np.int32, pa.float64(): np.float64}

#: name, Arrow type, nullable, doc
FIELDS: tuple[tuple[str, pa.DataType, bool, str], ...] = (
    ("chat_id", pa.int64(), False, "The chat, marked: -100... channel or supergroup, negative basic group, else user."),
    ("id", pa.int64(), False, "The message's number; (chat_id, id) is its identity for ever."),
    ("kind", pa.string(), False, "message, or service for what the chat itself reports (see service_action)."),
    ("date", _TIMESTAMP, False, "When it was sent."),
    ("edit_date", _TIMESTAMP, True, "The version: when it was changed last. A first reaction sets it too: edit_hide."),
    ("edit_hide", pa.bool_(), False, "edit_date was set by something that clients do not show as an edit."),
    ("outgoing", pa.bool_(), False, "Sent by the account that read it."),
    ("sender_id", pa.int64(), True, "Who sent it, marked like chat_id; the channel itself for its posts."),
    (
        "sender_name",
        pa.string(),
        True,
        "The sender's name or title; null where the answer did not describe the sender.",
    ),
    ("sender_username", pa.string(), True, "The sender's public name, without @."),
    ("sender_photo", pa.string(), True, "Where the sender's profile photo was written, if that was asked for."),
    ("text", pa.string(), True, "The text or caption, unformatted; null for service messages."),
    ("entities", pa.string(), True, "Formatting as a JSON array of {type, offset, length, ...} in UTF-16 code units."),
    ("reply_to_id", pa.int64(), True, "The message that this one answers."),
    ("reply_to_chat_id", pa.int64(), True, "The chat of the answered message, where it is another one."),
    ("reply_to_top_id", pa.int64(), True, "The first message of the thread that it is part of."),
    ("topic_id", pa.int64(), True, "The forum topic; null in General and outside of forums."),
    ("forward_from_id", pa.int64(), True, "Where it was forwarded from: a user's or chat's marked id."),
    ("forward_from_name", pa.string(), True, "The origin's name, where it hides its id."),
    ("forward_post_id", pa.int64(), True, "The forwarded post's number in its channel."),
    ("forward_date", _TIMESTAMP, True, "When the original was sent."),
    ("forward_author", pa.string(), True, "The signature of the forwarded post."),
    ("grouped_id", pa.int64(), True, "Common to all messages of an album."),
    ("views", pa.int64(), True, "How often the post was seen, as of reading."),
    ("forwards", pa.int64(), True, "How often the post was forwarded, as of reading."),
    ("replies", pa.int64(), True, "How many answers or comments it has, as of reading."),
    ("reactions", pa.string(), True, "Counts as a JSON object: emoji, or custom:<document id>, or paid, to number."),
    ("media_kind", pa.string(), True, "photo, video, voice, audio, sticker, animation, document, poll, geo, ..."),
    ("media_id", pa.int64(), True, "The file's id at Telegram."),
    ("media_mime", pa.string(), True, "The file's MIME type."),
    ("media_size", pa.int64(), True, "The file's size in bytes."),
    ("media_name", pa.string(), True, "The file's name."),
    ("media_width", pa.int32(), True, "Width in pixels."),
    ("media_height", pa.int32(), True, "Height in pixels."),
    ("media_duration_s", pa.float64(), True, "Length in seconds."),
    ("media_file", pa.string(), True, "Where the file was written, if that was asked for."),
    ("post_author", pa.string(), True, "The signature of a channel post."),
    ("pinned", pa.bool_(), False, "Pinned as of reading."),
    ("via_bot_id", pa.int64(), True, "The inline bot that made it."),
    ("service_action", pa.string(), True, "What a service message reports, as named by the API: PinMessage, ..."),
    ("service_data", pa.string(), True, "The details of service_action, as JSON."),
    ("migrated_from", pa.int64(), True, "In a supergroup's first message: the basic group that it was (marked)."),
    ("migrated_to", pa.int64(), True, "In a basic group's last message: the supergroup that it became (marked)."),
    ("link", pa.string(), True, "The message's address for people; null in groups and private chats."),
)
KEY = ("chat_id", "id")
NAMESPACE = "telegram"
COMMENT = "A message of a Telegram chat, as of when it was read."

SCHEMA = pa.schema([pa.field(name, kind, nullable, {"comment": doc}) for name, kind, nullable, doc in FIELDS])
KEY_SCHEMA = pa.schema([SCHEMA.field(name) for name in KEY])
_ALWAYS = frozenset({"chat_id", "id", "kind", "date", "edit_hide", "outgoing", "text", "pinned"})
_SPARSE = tuple(name for name in SCHEMA.names if name not in _ALWAYS)


def avro_schema(names: Sequence[str] = tuple(SCHEMA.names), *, record: str = "Message") -> dict[str, Any]:
    """The Avro record of these fields; nullable ones are a union with null first and default null."""
    fields: list[dict[str, Any]] = []
    for name, kind, nullable, doc in FIELDS:
        if name in names:
            avro = _AVRO[kind]
            extra = {"type": ["null", avro], "default": None} if nullable else {"type": avro}
            fields.append({"name": name, **extra, "doc": doc})
    return {"type": "record", "name": record, "namespace": NAMESPACE, "doc": COMMENT, "fields": fields}


class Rows:
    """Gathers messages of one chat as columns; the objects of the answers are let go at once."""

    def __init__(self, me_id: int | None = None) -> None:
        self._me_id = me_id
        self._columns: dict[str, list[Any]] = {name: [] for name in _ALWAYS}
        self._sparse: dict[str, dict[int, Any]] = {name: {} for name in _SPARSE}

    def __len__(self) -> int:
        return len(self._columns["id"])

    def extend(self, chat: Chat, messages: Iterable[Any], entities: dict[int, Any]) -> None:
        """Adds messages in the order given; `entities` are the users and chats of the same answer by marked id."""
        columns = self._columns
        chat_ids, ids, kinds, dates = columns["chat_id"], columns["id"], columns["kind"], columns["date"]
        hides, outs, texts, pins = columns["edit_hide"], columns["outgoing"], columns["text"], columns["pinned"]
        names = {number: (display_name(e) or None, username_of(e)) for number, e in entities.items()}
        sparse = self._sparse
        sender_ids, sender_names, usernames = sparse["sender_id"], sparse["sender_name"], sparse["sender_username"]
        links, prefix = sparse["link"], chat.link_prefix
        private = chat.kind == "user"
        for message in messages:
            row = len(ids)
            service = isinstance(message, types.MessageService)
            chat_ids.append(chat.marked_id)
            ids.append(message.id)
            kinds.append("service" if service else "message")
            dates.append(_millis(message.date))
            hides.append(bool(message.edit_hide))
            outs.append(bool(message.out))
            pins.append(bool(message.pinned))
            texts.append(None if service else message.message)
            sender = message.from_id
            if sender is None:
                sender_id = self._me_id if private and message.out else chat.marked_id
            elif isinstance(sender, types.PeerUser):
                sender_id = sender.user_id
            else:
                sender_id = marked_id(sender)
            if sender_id is not None:
                sender_ids[row] = sender_id
                if (named := names.get(sender_id)) is not None:
                    sender_names[row], usernames[row] = named
            if prefix is not None:
                links[row] = f"{prefix}{message.id}"
            if message.reply_to is not None:
                _reply(sparse, row, message.reply_to)
            if service:
                _service(sparse, row, message.action)
            _extras(sparse, row, message)

    def cut(self, count: int) -> None:
        """Leaves the first `count` rows."""
        for values in self._columns.values():
            del values[count:]
        for given in self._sparse.values():
            for row in [row for row in given if row >= count]:
                del given[row]

    def set(self, name: str, row: int, value: Any) -> None:
        """Fills one sparse field of a row that is there already."""
        self._sparse[name][row] = value

    def batch(self, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
        """All rows as one RecordBatch of `schema`, a selection of `SCHEMA`."""
        count = len(self)
        arrays = []
        for field in schema:
            if field.name in self._columns:
                values: list[Any] = self._columns[field.name]
            elif given := self._sparse[field.name]:
                values = [None] * count
                for row, value in given.items():
                    values[row] = value
            else:
                arrays.append(pa.nulls(count, field.type))
                continue
            arrays.append(_array(values, field.type))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """The values as an Arrow array, by its buffers: ``pa.array`` of a list imports pandas where that is installed,
    which costs a second at the first page."""
    valid = np.fromiter((v is not None for v in values), np.bool_, len(values))
    missing = len(values) - int(valid.sum())
    buffers: list[pa.Buffer | None] = [_bits(valid) if missing else None]
    if pa.types.is_string(kind):
        encoded = [b"" if v is None else v.encode("utf-8", "replace") for v in values]
        offsets = np.zeros(len(values) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, encoded), np.int32, len(values)), out=offsets[1:])
        buffers += [pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    elif pa.types.is_boolean(kind):
        buffers.append(_bits(np.fromiter(values, np.bool_, len(values))))
    else:
        filled = values if not missing else [0 if v is None else v for v in values]
        buffers.append(pa.py_buffer(np.array(filled, _NUMPY.get(kind, np.int64))))
    return pa.Array.from_buffers(kind, len(values), buffers, missing)


def _bits(flags: Any) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def empty_batch(schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """No rows."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def tombstones(chat: Chat, ids: Iterable[int]) -> pa.RecordBatch:
    """The keys of deleted messages."""
    numbers = sorted(ids)
    return pa.RecordBatch.from_arrays(
        [_array([chat.marked_id] * len(numbers), pa.int64()), _array(numbers, pa.int64())], schema=KEY_SCHEMA
    )


def _millis(date: dt.datetime | None) -> int | None:
    return None if date is None else int(date.timestamp()) * 1000


def _extras(sparse: dict[str, dict[int, Any]], row: int, message: Any) -> None:
    if message.edit_date is not None:
        sparse["edit_date"][row] = _millis(message.edit_date)
    if message.entities:
        sparse["entities"][row] = _json([_plain(e, "MessageEntity") for e in message.entities])
    if message.fwd_from is not None:
        _forward(sparse, row, message.fwd_from)
    if message.grouped_id is not None:
        sparse["grouped_id"][row] = message.grouped_id
    if message.views is not None:
        sparse["views"][row] = message.views
    if message.forwards is not None:
        sparse["forwards"][row] = message.forwards
    if message.replies is not None:
        sparse["replies"][row] = message.replies.replies
    if message.reactions is not None and message.reactions.results:
        sparse["reactions"][row] = _json({_reaction(r.reaction): r.count for r in message.reactions.results})
    if message.media is not None:
        _media(sparse, row, message.media)
    if message.post_author is not None:
        sparse["post_author"][row] = message.post_author
    if message.via_bot_id is not None:
        sparse["via_bot_id"][row] = message.via_bot_id


def _reply(sparse: dict[str, dict[int, Any]], row: int, reply: Any) -> None:
    """core.telegram.org/api/threads: in a topic the header names it as top, or as the message if it starts it."""
    if not isinstance(reply, types.MessageReplyHeader):
        return
    if reply.forum_topic:
        sparse["topic_id"][row] = reply.reply_to_top_id or reply.reply_to_msg_id
    if reply.reply_to_msg_id is not None:
        sparse["reply_to_id"][row] = reply.reply_to_msg_id
    if reply.reply_to_top_id is not None:
        sparse["reply_to_top_id"][row] = reply.reply_to_top_id
    if reply.reply_to_peer_id is not None:
        sparse["reply_to_chat_id"][row] = marked_id(reply.reply_to_peer_id)


def _forward(sparse: dict[str, dict[int, Any]], row: int, forward: Any) -> None:
    if forward.from_id is not None:
        sparse["forward_from_id"][row] = marked_id(forward.from_id)
    if forward.from_name is not None:
        sparse["forward_from_name"][row] = forward.from_name
    if forward.channel_post is not None:
        sparse["forward_post_id"][row] = forward.channel_post
    if forward.post_author is not None:
        sparse["forward_author"][row] = forward.post_author
    sparse["forward_date"][row] = _millis(forward.date)


def _service(sparse: dict[str, dict[int, Any]], row: int, action: Any) -> None:
    sparse["service_action"][row] = type(action).__name__.removeprefix("MessageAction")
    details = _plain(action, "MessageAction")
    del details["type"]
    if details:
        sparse["service_data"][row] = _json(details)
    if isinstance(action, types.MessageActionChannelMigrateFrom):
        sparse["migrated_from"][row] = -action.chat_id
    elif isinstance(action, types.MessageActionChatMigrateTo):
        sparse["migrated_to"][row] = -CHANNEL_MARK - action.channel_id


def _media(sparse: dict[str, dict[int, Any]], row: int, media: Any) -> None:
    found: dict[str, Any]
    match media:
        case types.MessageMediaPhoto(photo=types.Photo() as photo):
            largest = max(
                (s for s in photo.sizes if isinstance(s, types.PhotoSize | types.PhotoSizeProgressive)),
                key=lambda s: s.w * s.h,
                default=None,
            )
            found = {"kind": "photo", "id": photo.id, "mime": "image/jpeg"}
            if largest is not None:
                size = largest.size if isinstance(largest, types.PhotoSize) else max(largest.sizes)
                found |= {"size": size, "width": largest.w, "height": largest.h}
        case types.MessageMediaDocument(document=types.Document() as document):
            found = _document(document)
        case _:
            found = {"kind": type(media).__name__.removeprefix("MessageMedia").lower()}
    for name, value in found.items():
        sparse[f"media_{name}"][row] = value


def _document(document: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "document", "id": document.id, "mime": document.mime_type, "size": document.size}
    for attribute in document.attributes:
        match attribute:
            case types.DocumentAttributeFilename():
                found["name"] = attribute.file_name
            case types.DocumentAttributeVideo():
                kind = found["kind"] if found["kind"] in ("animation", "sticker") else "video"
                found |= {"kind": "round" if attribute.round_message else kind, "duration_s": float(attribute.duration)}
                found |= {"width": attribute.w, "height": attribute.h}
            case types.DocumentAttributeAudio():
                found |= {"kind": "voice" if attribute.voice else "audio", "duration_s": float(attribute.duration)}
            case types.DocumentAttributeImageSize():
                found |= {"width": attribute.w, "height": attribute.h}
            case types.DocumentAttributeSticker():
                found["kind"] = "sticker"
            case types.DocumentAttributeAnimated():
                found["kind"] = "animation"
    return found


def _reaction(reaction: Any) -> str:
    match reaction:
        case types.ReactionEmoji():
            return str(reaction.emoticon)
        case types.ReactionCustomEmoji():
            return f"custom:{reaction.document_id}"
    return "paid" if isinstance(reaction, types.ReactionPaid) else type(reaction).__name__


def _plain(value: Any, prefix: str) -> dict[str, Any]:
    """A TL object's own fields that are set, and its type's name without the prefix."""
    fields = {k: v for k, v in vars(value).items() if v is not None and not k.startswith("_")}
    return {"type": type(value).__name__.removeprefix(prefix), **fields}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_jsonable)


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if (number := marked_id(value)) is not None:
        return number
    return _plain(value, "")
