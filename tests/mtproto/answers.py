"""Owns what the pretended account answers to each request (core.telegram.org/methods)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from telethon.tl import functions, types

from tests.mtproto import wire
from tests.mtproto.world import ME_ID, Chat, Raw, World, user

PAGE_LIMIT = 100
FILE_BYTES = bytes(range(256)) * 64


class Refused(Exception):
    """An rpc_error: what the server says instead of an answer."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def answer(world: World, request: Any, *, shift: bool = False) -> bytes:
    """The result of one request as TL bytes; `Refused` where the server would refuse."""
    if isinstance(request, functions.messages.GetHistoryRequest):
        return history(world, request, shift=shift)
    handler = _ANSWERS.get(type(request))
    if handler is None:
        raise Refused(400, "METHOD_INVALID")
    result = handler(world, request)
    return result if isinstance(result, bytes) else bytes(result)


def _chat(world: World, peer: Any) -> Chat:
    chat = world.by_input_peer(peer)
    if chat is None:
        raise Refused(400, "CHAT_ID_INVALID" if isinstance(peer, types.InputPeerChat) else "CHANNEL_INVALID")
    wrong = getattr(peer, "access_hash", chat.access_hash) != chat.access_hash
    if wrong and chat.kind != "user":
        raise Refused(400, "CHANNEL_INVALID")
    if chat.refuses:
        raise Refused(403 if chat.refuses.endswith("FORBIDDEN") else 400, chat.refuses)
    return chat


def history(world: World, request: Any, *, empty: bool = False, shift: bool = False) -> bytes:
    """messages.getHistory: newest first, at most 100, counted from the offset with `add_offset`."""
    chat = _chat(world, request.peer)
    limit = max(1, min(request.limit, PAGE_LIMIT))
    date = int(request.offset_date.timestamp()) if request.offset_date else 0
    low, high = chat.window(request.offset_id, date, request.add_offset, limit, shift=shift)
    ids = [] if empty else chat.ids[low:high]
    if request.min_id or request.max_id:
        ids = [i for i in ids if i > request.min_id and (not request.max_id or i < request.max_id)]
    messages = [chat.message(i) for i in reversed(ids)]
    chats = [Raw(chat.entity()._bytes())]
    users = world.users_of(messages)
    count, newer = len(chat.ids), len(chat.ids) - high
    if chat.kind in ("group", "user"):
        return bytes(types.messages.MessagesSlice(count, messages, [], chats, users, offset_id_offset=newer))
    return bytes(types.messages.ChannelMessages(chat.pts, count, messages, [], chats, users, offset_id_offset=newer))


def _resolve(world: World, request: Any) -> Any:
    chat = world.by_name(request.username)
    if chat is None:
        raise Refused(400, "USERNAME_NOT_OCCUPIED")
    entity = [chat.entity()]
    is_user = chat.kind == "user"
    return types.contacts.ResolvedPeer(chat.peer, [] if is_user else entity, entity if is_user else [])


def _invite(world: World, request: Any) -> Any:
    chat = next((c for c in world.chats if c.invite == request.hash), None)
    if chat is None:
        raise Refused(400, "INVITE_HASH_EXPIRED")
    return types.ChatInviteAlready(chat.entity())


def _dialogs(world: World, request: Any) -> Any:
    settings = types.PeerNotifySettings()
    dialogs, messages = [], []
    for chat in world.chats:
        if chat.refuses:
            continue
        top = chat.ids[-1] if chat.ids else 0
        dialogs.append(types.Dialog(chat.peer, top, 0, 0, 0, 0, 0, 0, settings, pts=chat.pts))
        if top:
            messages.append(chat.message(top))
    entities = [c.entity() for c in world.chats if not c.refuses]
    users = [e for e in entities if isinstance(e, types.User)] + world.users_of(messages)
    return types.messages.Dialogs(dialogs, messages, [e for e in entities if not isinstance(e, types.User)], users)


def _channels(world: World, request: Any) -> Any:
    return types.messages.Chats([_chat(world, c).entity() for c in request.id])


def _full_channel(world: World, request: Any) -> Any:
    chat = _chat(world, request.channel)
    photo = types.PhotoEmpty(0)
    full = types.ChannelFull(
        chat.id,
        "",
        0,
        0,
        0,
        photo,
        types.PeerNotifySettings(),
        [],
        chat.pts,
        migrated_from_chat_id=chat.migrated_from,
        migrated_from_max_id=chat.migrated_from_max_id or None,
    )
    return types.messages.ChatFull(full, [chat.entity()], [])


def _groups(world: World, request: Any) -> Any:
    found = [c for c in world.chats if c.kind == "group" and c.id in request.id]
    if not found:
        raise Refused(400, "CHAT_ID_INVALID")
    return types.messages.Chats([c.entity() for c in found])


def _users(world: World, request: Any) -> bytes:
    found = []
    for wanted in request.id:
        found.append(user(ME_ID if isinstance(wanted, types.InputUserSelf) else wanted.user_id))
    return wire.vector(found)


def _config(world: World, request: Any) -> Any:
    numbers = [200, 200000, 100, 210000, 5000, 30000, 300000, 30000, 1500, 60000, 10]
    more = [172800, 172800, 172800, 2419200, 200, 604800, 20000, 90000, 30000, 10000]
    option = types.DcOption(2, "127.0.0.1", 443)
    return types.Config(now(), now(), True, 2, [option], "loopback", *numbers, *more, "https://t.me/", 1024, 4096, 2)


def _file(world: World, request: Any) -> Any:
    return types.upload.File(types.storage.FileJpeg(), 0, FILE_BYTES[request.offset : request.offset + request.limit])


def _state(world: World, request: Any) -> Any:
    return types.updates.State(1, 1, now(), 1, 0)


def _send_code(world: World, request: Any) -> Any:
    if request.api_hash == "wrong":
        raise Refused(400, "API_ID_INVALID")
    if request.phone_number.endswith("000"):
        raise Refused(400, "PHONE_NUMBER_BANNED")
    return types.auth.SentCode(types.auth.SentCodeTypeApp(5), "code-hash")


def _sign_in(world: World, request: Any) -> Any:
    if request.phone_code != "12345":
        raise Refused(400, "PHONE_CODE_INVALID")
    return types.auth.Authorization(user(ME_ID))


def _login_token(world: World, request: Any) -> Any:
    if world.scanned:
        return types.auth.LoginTokenSuccess(types.auth.Authorization(user(ME_ID)))
    return types.auth.LoginToken(now() + dt.timedelta(seconds=30), b"a login token")


_ANSWERS: dict[type, Callable[[World, Any], Any]] = {
    functions.help.GetConfigRequest: _config,
    functions.users.GetUsersRequest: _users,
    functions.updates.GetStateRequest: _state,
    functions.updates.GetDifferenceRequest: lambda w, r: types.updates.DifferenceEmpty(now(), 1),
    functions.updates.GetChannelDifferenceRequest: lambda w, r: types.updates.ChannelDifferenceEmpty(r.pts, final=True),
    functions.contacts.ResolveUsernameRequest: _resolve,
    functions.messages.CheckChatInviteRequest: _invite,
    functions.messages.GetDialogsRequest: _dialogs,
    functions.messages.GetPinnedDialogsRequest: _dialogs,
    functions.messages.GetChatsRequest: _groups,
    functions.channels.GetChannelsRequest: _channels,
    functions.channels.GetFullChannelRequest: _full_channel,
    functions.account.InitTakeoutSessionRequest: lambda w, r: types.account.Takeout(4711),
    functions.account.FinishTakeoutSessionRequest: lambda w, r: wire.BOOL_TRUE,
    functions.upload.GetFileRequest: _file,
    functions.auth.SendCodeRequest: _send_code,
    functions.auth.SignInRequest: _sign_in,
    functions.auth.ExportLoginTokenRequest: _login_token,
    functions.auth.LogOutRequest: lambda w, r: types.auth.LoggedOut(),
}
