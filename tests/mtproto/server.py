"""Owns the loopback server: accepts connections, keeps the protocol's rules and applies the script of faults.

What is answered is in `tests.mtproto.answers`. The server checks our client against our reading of the protocol; the
live service is not part of the tests.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from telethon.crypto import AuthKey
from telethon.extensions import BinaryReader
from telethon.sessions import StringSession
from telethon.tl import TLObject, functions, types
from telethon.tl.core import GzipPacked, MessageContainer

from tests.mtproto import answers, handshake, wire
from tests.mtproto.answers import Refused
from tests.mtproto.script import Fault, Script
from tests.mtproto.world import World

GZIP_OVER_BYTES = 4096  #: answers longer than this are compressed, as the real server does


@dataclass(eq=False)
class _Peer:
    """One connection of a client."""

    packets: wire.Packets
    auth_key: AuthKey
    salt: int
    session_id: int = 0
    ids: wire.MessageIds = field(default_factory=wire.MessageIds)
    sequence: itertools.count[int] = field(default_factory=wire.sequence_numbers)
    receives_updates: bool = False

    async def send(self, data: bytes, *, answer: bool) -> None:
        number = next(self.sequence)
        packet = wire.encrypt(self.auth_key, self.salt, self.session_id, self.ids.next(answer=answer), number, data)
        await self.packets.send(packet)


class Server:
    """``async with Server(world, faults) as server: ... server.session()`` on a free loopback port."""

    def __init__(
        self,
        world: World,
        faults: Iterable[Fault] = (),
        *,
        latency_s: float = 0.0,
        compress: bool = False,
        port: int = 0,
    ) -> None:
        self.world = world
        self.script = Script(list(faults))
        self.latency_s = latency_s
        self.compress = compress
        self.port = port
        self.connections = 0
        self.log: list[Any] = []  #: every request that reached an answer, in order
        self.keep_log = True
        self.takeout_requests = 0
        self._keys: dict[int, AuthKey] = {}
        self._strangers: set[int] = set()  # keys that nobody has logged in with
        self._peers: set[_Peer] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._salt = 1
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for peer in list(self._peers):
            peer.packets.drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def open_connections(self) -> int:
        return len(self._tasks)

    def session(self, key: bytes | None = None) -> str:
        """A session string (a secret, as a real one is) for a client that has logged in already."""
        auth_key = AuthKey(key or os.urandom(256))
        self._keys[auth_key.key_id] = auth_key
        session = StringSession()
        session.set_dc(2, "127.0.0.1", self.port)
        session.auth_key = auth_key
        return str(session.save())

    def forget_keys(self) -> None:
        """As when the account ended the session: the key is unknown from now on."""
        self._keys.clear()

    async def push(self, *updates: Any) -> None:
        """Sends updates to every connected client that wants them."""
        now = answers.now()
        chats = [c.entity() for c in self.world.chats]
        body = bytes(types.Updates(list(updates), [], chats, now, 0))
        for peer in list(self._peers):
            if peer.receives_updates:
                await peer.send(body, answer=False)

    # --- one connection ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._serve_packets(wire.Packets(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve_packets(self, packets: wire.Packets) -> None:
        first = await packets.receive()
        if first[:8] == bytes(8):
            auth_key = await handshake.exchange_keys(packets, first)
            self._keys[auth_key.key_id] = auth_key
            self._strangers.add(auth_key.key_id)
            first = await packets.receive()
        known = self._keys.get(struct.unpack("<Q", first[:8])[0])
        if known is None:
            await packets.send(struct.pack("<i", -404))  # the transport's error for an unknown key
            return
        peer = _Peer(packets, known, self._salt)
        self._peers.add(peer)
        try:
            await self._receive(peer, first)
            while True:
                await self._receive(peer, await packets.receive())
        finally:
            self._peers.discard(peer)

    async def _receive(self, peer: _Peer, packet: bytes) -> None:
        incoming = wire.decrypt(peer.auth_key, packet)
        peer.session_id = incoming.session_id
        if incoming.salt != self._salt:
            await self._refuse_salt(peer, incoming.message_id, incoming.sequence)
            return
        reader = BinaryReader(incoming.data)
        body = reader.tgread_object()
        if isinstance(body, MessageContainer):
            messages = [(m.msg_id, m.seq_no, m.obj) for m in body.messages]
        else:
            messages = [(incoming.message_id, incoming.sequence, body)]
        for message_id, sequence, request in messages:
            if isinstance(request, GzipPacked):
                request = BinaryReader(request.data).tgread_object()
            if isinstance(request, types.MsgsAck | types.MsgsStateInfo):
                continue
            task = asyncio.create_task(self._answer(peer, message_id, sequence, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _refuse_salt(self, peer: _Peer, message_id: int, sequence: int) -> None:
        peer.salt = self._salt
        await peer.send(bytes(types.BadServerSalt(message_id, sequence, 48, self._salt)), answer=False)

    async def _answer(self, peer: _Peer, message_id: int, sequence: int, request: Any) -> None:
        with suppress(ConnectionError):
            request = self._unwrap(peer, request)
            if isinstance(request, functions.PingRequest | functions.PingDelayDisconnectRequest):
                await peer.send(bytes(types.Pong(message_id, request.ping_id)), answer=True)
                return
            fault = self.script.next(request)
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            try:
                result = await self._struck(peer, message_id, sequence, request, fault)
            except Refused as refused:
                result = bytes(types.RpcError(refused.code, refused.text))
            if result is None:
                return
            if self.compress and len(result) > GZIP_OVER_BYTES:
                packed = gzip.compress(result, 1)
                result = struct.pack("<I", GzipPacked.CONSTRUCTOR_ID) + TLObject.serialize_bytes(packed)
            await peer.send(wire.RPC_RESULT + struct.pack("<q", message_id) + result, answer=True)

    async def _struck(
        self, peer: _Peer, message_id: int, sequence: int, request: Any, fault: Fault | None
    ) -> bytes | None:
        """The answer's bytes with the fault applied; None where there is none to send."""
        shift = False
        match fault:
            case None:
                pass
            case Fault("flood", value=seconds):
                raise Refused(420, f"FLOOD_WAIT_{int(float(seconds or 1))}")
            case Fault("premium", value=seconds):
                raise Refused(420, f"FLOOD_PREMIUM_WAIT_{int(float(seconds or 1))}")
            case Fault("error", value=what):
                code, _, text = str(what).partition(":")
                raise Refused(int(code), text)
            case Fault("drop"):
                peer.packets.drop()
                return None
            case Fault("hang"):
                return None
            case Fault("salt"):
                self._salt += 1
                await self._refuse_salt(peer, message_id, sequence)
                return None
            case Fault("delay", value=seconds):
                await asyncio.sleep(float(seconds))
            case Fault("empty"):
                return answers.history(self.world, request, empty=True)
            case Fault("shift"):
                shift = True
        if self.keep_log:
            self.log.append(request)
        area = type(request).__module__.rpartition(".")[2]
        if peer.auth_key.key_id in self._strangers and area not in ("auth", "help", "account"):
            raise Refused(401, "AUTH_KEY_UNREGISTERED")
        answer = answers.answer(self.world, request, shift=shift)
        if isinstance(request, functions.auth.SignInRequest) or self.world.scanned:
            self._strangers.discard(peer.auth_key.key_id)
        return answer

    def _unwrap(self, peer: _Peer, request: Any) -> Any:
        while True:
            match request:
                case functions.InitConnectionRequest():
                    request = request.query
                case functions.InvokeWithLayerRequest():
                    request = request.query
                    peer.receives_updates = not isinstance(request, functions.InvokeWithoutUpdatesRequest)
                case functions.InvokeWithTakeoutRequest():
                    self.takeout_requests += 1
                    request = request.query
                case functions.InvokeWithoutUpdatesRequest() | functions.InvokeAfterMsgRequest():
                    request = request.query
                case _:
                    return request
