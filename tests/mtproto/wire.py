"""Owns the server's half of MTProto 2.0 over TCP: packets, encryption and message ids.

Sources: core.telegram.org/mtproto/mtproto-transports (full transport), /mtproto/description (encryption, message ids,
containers). The primitives (AES-IGE, key derivation, TL objects) are Telethon's, which the client uses as well, so a
mistake in those would not be seen here; what is checked is everything above them.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import struct
import time
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from telethon.crypto import AES, AuthKey
from telethon.network.mtprotostate import MTProtoState

RPC_RESULT = struct.pack("<I", 0xF35C6D01)
VECTOR = struct.pack("<I", 0x1CB5C415)
BOOL_TRUE = struct.pack("<I", 0x997275B5)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One decrypted client packet; `data` is the TL body (a request, an acknowledgement or a container)."""

    salt: int
    session_id: int
    message_id: int
    sequence: int
    data: bytes


class Packets:
    """The full TCP transport: length, sequence number, payload and checksum."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._sent = 0

    async def receive(self) -> bytes:
        """The next payload; IncompleteReadError when the client is gone."""
        head = await self._reader.readexactly(8)
        length = struct.unpack("<ii", head)[0]
        body = await self._reader.readexactly(length - 8)
        if crc32(head + body[:-4]) != struct.unpack("<I", body[-4:])[0]:
            raise ConnectionError("the client's packet has a wrong checksum")
        return body[:-4]

    async def send(self, payload: bytes) -> None:
        packet = struct.pack("<ii", len(payload) + 12, self._sent) + payload
        self._sent += 1
        self._writer.write(packet + struct.pack("<I", crc32(packet)))
        await self._writer.drain()

    def drop(self) -> None:
        """Cuts the connection as a lost network would: no farewell."""
        self._writer.transport.abort()


@dataclass
class MessageIds:
    """Server message ids: the time in the upper half, odd, rising, and 1 modulo 4 for answers to a request."""

    _last: int = field(default=0)

    def next(self, *, answer: bool) -> int:
        now = time.time()
        wanted = (int(now) << 32 | int((now % 1) * 2**30) << 2) & ~3
        self._last = max(wanted, (self._last & ~3) + 4)
        return self._last | (1 if answer else 3)


def decrypt(auth_key: AuthKey, packet: bytes) -> Incoming:
    """A client's packet with its key id and checked message key; ConnectionError where the key is wrong."""
    message_key = packet[8:24]
    aes_key, aes_iv = MTProtoState._calc_key(auth_key.key, message_key, True)
    plain = AES.decrypt_ige(packet[24:], aes_key, aes_iv)
    if hashlib.sha256(auth_key.key[88:120] + plain).digest()[8:24] != message_key:
        raise ConnectionError("the client's packet has a wrong message key")
    salt, session_id, message_id, sequence, length = struct.unpack_from("<qqqii", plain)
    return Incoming(salt, session_id, message_id, sequence, plain[32 : 32 + length])


def encrypt(auth_key: AuthKey, salt: int, session_id: int, message_id: int, sequence: int, data: bytes) -> bytes:
    """The packet for one server message."""
    plain = struct.pack("<qqqii", salt, session_id, message_id, sequence, len(data)) + data
    plain += os.urandom(-(len(plain) + 12) % 16 + 12)
    message_key = hashlib.sha256(auth_key.key[96:128] + plain).digest()[8:24]
    aes_key, aes_iv = MTProtoState._calc_key(auth_key.key, message_key, False)
    return struct.pack("<Q", auth_key.key_id) + message_key + bytes(AES.encrypt_ige(plain, aes_key, aes_iv))


def vector(items: list[Any]) -> bytes:
    """A bare TL vector of objects, which no class of Telethon writes by itself."""
    return VECTOR + struct.pack("<i", len(items)) + b"".join(bytes(item) for item in items)


def sequence_numbers() -> itertools.count[int]:
    """Sequence numbers of content-related server messages: 1, 3, 5, ..."""
    return itertools.count(1, 2)
