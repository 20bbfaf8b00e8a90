"""Owns the server's half of the Diffie-Hellman key exchange (core.telegram.org/mtproto/auth_key).

`SERVER_KEY` is made anew for every process; a client that shall trust it registers `server_public_key()` with
``telethon.crypto.rsa.add_key``. Most tests share a key beforehand instead and skip the exchange.
"""

from __future__ import annotations

import functools
import os
import struct
import time
from hashlib import sha1

import rsa
from telethon.crypto import AES, AuthKey
from telethon.crypto import rsa as telethon_rsa
from telethon.extensions import BinaryReader
from telethon.helpers import generate_key_data_from_nonce
from telethon.tl import types
from telethon.tl.functions import ReqDHParamsRequest, ReqPqMultiRequest, SetClientDHParamsRequest

from tests.mtproto.wire import MessageIds, Packets

#: The 2048-bit MODP group of RFC 3526, a safe prime as the protocol asks for.
DH_PRIME = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)
GENERATOR = 2
PRIME_P, PRIME_Q = 1229739323, 1402015859  # the example of the protocol's own page


@functools.cache
def server_key() -> rsa.PrivateKey:
    """This process's RSA key (2048 bits)."""
    return rsa.newkeys(2048)[1]


def server_public_key() -> bytes:
    """The public key in PKCS#1 PEM, as ``telethon.crypto.rsa.add_key`` takes it."""
    key = server_key()
    return bytes(rsa.PublicKey(key.n, key.e).save_pkcs1())


async def exchange_keys(packets: Packets, first: bytes) -> AuthKey:
    """Answers the exchange that `first` begins, and returns the key that both sides then have."""
    ids = MessageIds()

    async def send(answer: object) -> None:
        body = bytes(answer)  # type: ignore[call-overload]
        await packets.send(struct.pack("<qqi", 0, ids.next(answer=True), len(body)) + body)

    def read(packet: bytes) -> object:
        return BinaryReader(packet[20:]).tgread_object()

    ask = read(first)
    assert isinstance(ask, ReqPqMultiRequest)
    server_nonce = int.from_bytes(os.urandom(16), "little", signed=True)
    key = server_key()
    fingerprint = telethon_rsa._compute_fingerprint(key)
    pq = telethon_rsa.get_byte_array(PRIME_P * PRIME_Q)
    await send(types.ResPQ(ask.nonce, server_nonce, pq, [fingerprint]))

    params = read(await packets.receive())
    assert isinstance(params, ReqDHParamsRequest)
    block = pow(int.from_bytes(params.encrypted_data, "big"), key.d, key.n).to_bytes(255, "big")
    inner = BinaryReader(block[20:]).tgread_object()
    assert isinstance(inner, types.PQInnerData) and block[:20] == sha1(bytes(inner)).digest()
    aes_key, aes_iv = generate_key_data_from_nonce(server_nonce, inner.new_nonce)
    secret = int.from_bytes(os.urandom(256), "big")
    public = telethon_rsa.get_byte_array(pow(GENERATOR, secret, DH_PRIME))
    dh_inner = bytes(
        types.ServerDHInnerData(
            ask.nonce, server_nonce, GENERATOR, telethon_rsa.get_byte_array(DH_PRIME), public, int(time.time())
        )
    )
    answer = sha1(dh_inner).digest() + dh_inner
    answer += os.urandom(-len(answer) % 16)
    await send(types.ServerDHParamsOk(ask.nonce, server_nonce, AES.encrypt_ige(answer, aes_key, aes_iv)))

    final = read(await packets.receive())
    assert isinstance(final, SetClientDHParamsRequest)
    client_inner = BinaryReader(AES.decrypt_ige(final.encrypted_data, aes_key, aes_iv)[20:]).tgread_object()
    shared = pow(int.from_bytes(client_inner.g_b, "big"), secret, DH_PRIME)
    auth_key = AuthKey(telethon_rsa.get_byte_array(shared))
    digest = auth_key.calc_new_nonce_hash(inner.new_nonce, 1)
    await send(types.DhGenOk(ask.nonce, server_nonce, digest))
    return auth_key
