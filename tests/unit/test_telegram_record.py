"""The message record: what is in the schemas, and what becomes of each kind of message."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from telethon import types

from producer.config import StreamConfig
from producer.encoding.schema import check_schema
from producer.errors import ConfigError
from producer.model import Dataset
from producer.sources.telegram import record
from producer.sources.telegram.chats import Chat
from producer.sources.telegram.source import selected_fields
from tests.mtproto import build

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
CHANNEL = Chat(-1000000001001, types.InputPeerChannel(1001, 1), "channel", "News", "news")
GROUP = Chat(-77, types.InputPeerChat(77), "group", "Family")
PEER = types.PeerChannel(1001)


def row(message: Any, chat: Chat = CHANNEL, entities: dict[int, Any] | None = None) -> dict[str, Any]:
    """The message's row, without its nulls."""
    rows = record.Rows(me_id=5)
    rows.extend(chat, [message], entities or {})
    batch = rows.batch()
    batch.validate(full=True)
    return {name: value for name, value in batch.to_pylist()[0].items() if value is not None}


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert json.loads((SCHEMAS / "telegram_message.avsc").read_text()) == record.avro_schema()


def test_every_field_is_documented() -> None:
    assert all(field["doc"].endswith(".") for field in record.avro_schema()["fields"])


def test_the_schema_fits_the_columns() -> None:
    dataset = Dataset("chat", record.SCHEMA, record.KEY, record.KEY, {})
    check_schema(record.avro_schema(), dataset)


def test_text_keeps_every_character_and_dates_their_second() -> None:
    found = row(build(7, PEER, kind="text", text="до свидания 👩‍👩‍👧 \x00 'quoted'"))
    assert found["text"] == "до свидания 👩‍👩‍👧 \x00 'quoted'"
    assert found["date"] == dt.datetime(2024, 1, 1, 0, 7, tzinfo=dt.UTC)
    assert (found["chat_id"], found["id"], found["kind"]) == (-1000000001001, 7, "message")


def test_a_service_message_is_kept_with_what_it_reports() -> None:
    action = types.MessageActionChatEditTitle("New title")
    found = row(types.MessageService(9, PEER, date=dt.datetime(2024, 1, 1, tzinfo=dt.UTC), action=action))
    assert found["kind"] == "service"
    assert found["service_action"] == "ChatEditTitle"
    assert json.loads(found["service_data"]) == {"title": "New title"}
    assert "text" not in found


def test_migration_messages_name_the_other_chat() -> None:
    date = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    to = row(
        types.MessageService(9, types.PeerChat(77), date=date, action=types.MessageActionChatMigrateTo(1001)), GROUP
    )
    assert to["migrated_to"] == -1000000001001
    since = row(types.MessageService(1, PEER, date=date, action=types.MessageActionChannelMigrateFrom("Family", 77)))
    assert since["migrated_from"] == -77


def test_a_topic_is_named_by_its_top_message_or_by_the_one_that_starts_it() -> None:
    inside = row(build(7, PEER, kind="text", reply_to=types.MessageReplyHeader(
        forum_topic=True, reply_to_msg_id=4, reply_to_top_id=2)))  # fmt: skip
    assert (inside["topic_id"], inside["reply_to_id"], inside["reply_to_top_id"]) == (2, 4, 2)
    first = row(build(8, PEER, kind="text", reply_to=types.MessageReplyHeader(forum_topic=True, reply_to_msg_id=2)))
    assert first["topic_id"] == 2
    general = row(build(9, PEER, kind="text", reply_to=types.MessageReplyHeader(reply_to_msg_id=3)))
    assert "topic_id" not in general


def test_reply_ids_stay_integers_beside_messages_without_one() -> None:
    rows = record.Rows()
    rows.extend(CHANNEL, [build(1, PEER, kind="reply"), build(2, PEER, kind="text")], {})
    assert rows.batch().column("reply_to_id").to_pylist() == [1, None]
    assert rows.batch().schema.field("reply_to_id").type == pa.int64()


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ([types.DocumentAttributeAudio(3, voice=True)], {"media_kind": "voice", "media_duration_s": 3.0}),
        ([types.DocumentAttributeAudio(9)], {"media_kind": "audio", "media_duration_s": 9.0}),
        ([types.DocumentAttributeVideo(1.5, 4, 3, round_message=True)], {"media_kind": "round", "media_width": 4}),
        ([types.DocumentAttributeVideo(2, 4, 3), types.DocumentAttributeAnimated()], {"media_kind": "animation"}),
        ([types.DocumentAttributeSticker("x", types.InputStickerSetEmpty())], {"media_kind": "sticker"}),
        ([types.DocumentAttributeFilename("a.pdf")], {"media_kind": "document", "media_name": "a.pdf"}),
    ],
)
def test_a_documents_attributes_say_what_it_is(attributes: list[Any], expected: dict[str, Any]) -> None:
    document = types.Document(81, 82, b"r", None, "x/y", 10, 2, attributes)
    found = row(build(7, PEER, kind="text", media=types.MessageMediaDocument(document=document)))
    assert expected.items() <= found.items()
    assert (found["media_id"], found["media_size"], found["media_mime"]) == (81, 10, "x/y")


@pytest.mark.parametrize(
    ("media", "kind"),
    [(types.MessageMediaGeo(types.GeoPointEmpty()), "geo"), (types.MessageMediaPhoto(), "photo"),
     (types.MessageMediaUnsupported(), "unsupported"), (types.MessageMediaDocument(), "document")],
)  # fmt: skip
def test_media_without_a_file_are_named_by_their_kind(media: Any, kind: str) -> None:
    found = row(build(7, PEER, kind="text", media=media))
    assert found["media_kind"] == kind
    assert "media_id" not in found


def test_the_sender_is_the_channel_for_its_posts_and_the_account_for_what_it_sent() -> None:
    post = row(build(7, PEER, kind="text", from_id=None), entities={CHANNEL.marked_id: types.Channel(
        1001, "News", types.ChatPhotoEmpty(), None, username="news")})  # fmt: skip
    assert (post["sender_id"], post["sender_name"], post["sender_username"]) == (CHANNEL.marked_id, "News", "news")
    private = Chat(900, types.InputPeerUser(900, 1), "user", "Friend")
    assert row(build(7, types.PeerUser(900), kind="text", from_id=None, out=True), private)["sender_id"] == 5
    assert row(build(7, types.PeerUser(900), kind="text", from_id=None), private)["sender_id"] == 900


def test_links_are_public_private_or_absent() -> None:
    assert row(build(7, PEER))["link"] == "https://t.me/news/7"
    assert row(build(7, PEER), Chat(-1000000001001, None, "supergroup", "x"))["link"] == "https://t.me/c/1001/7"
    assert "link" not in row(build(7, types.PeerChat(77)), GROUP)


def test_reactions_count_by_emoji_custom_emoji_and_stars() -> None:
    counts = [
        types.ReactionCount(types.ReactionEmoji("❤"), 3),
        types.ReactionCount(types.ReactionCustomEmoji(99), 2),
        types.ReactionCount(types.ReactionPaid(), 1),
    ]
    found = row(build(7, PEER, kind="text", reactions=types.MessageReactions(counts)))
    assert json.loads(found["reactions"]) == {"❤": 3, "custom:99": 2, "paid": 1}


def test_chosen_fields_always_hold_the_key_and_unknown_ones_are_refused_by_name() -> None:
    def config(**more: Any) -> StreamConfig:
        return StreamConfig(name="s", source="t", chat="@x", topic="t", **more)

    assert selected_fields(config(columns=("text", "date"))) == ("chat_id", "id", "date", "text")
    assert "sender_name" not in selected_fields(config(exclude=("sender_name",)))
    with pytest.raises(ConfigError, match="no field 'txt'"):
        selected_fields(config(columns=("txt",)))
