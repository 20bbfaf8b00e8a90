"""A loopback Telegram: a server that speaks MTProto 2.0 to the real client library, scripted by data.

    async with Server(World([made_chat(1, 500)]), [Fault("flood", 3, value=2)]) as server:
        session = server.session()

``python -m tests.mtproto`` starts one by hand.
"""

from __future__ import annotations

from tests.mtproto.script import Fault, Script, parse_fault
from tests.mtproto.server import Server
from tests.mtproto.world import Chat, World, build, made_chat

__all__ = ["Chat", "Fault", "Script", "Server", "World", "build", "made_chat", "parse_fault"]
