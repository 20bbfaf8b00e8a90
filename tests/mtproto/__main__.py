"""Starts the loopback Telegram by hand: ``python -m tests.mtproto --messages 100000 --session-file PATH``.

It prints one line of JSON with the session string (a secret only in name: it opens nothing but this server) and serves
until it is interrupted. Put the string into ``TELEGRAM_SESSION`` and run ``producer run examples/telegram.yaml``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from pathlib import Path

from tests.mtproto import Server, World, made_chat, parse_fault


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mtproto", description="A Telegram server for loopback tests."
    )
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument("--chats", type=int, default=1, help="how many chats (@demo, @demo2, ...)")
    parser.add_argument("--messages", type=int, default=100_000, help="messages in each chat")
    parser.add_argument("--latency-s", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--grow-per-s", type=float, default=0.0, help="new messages a second in the first chat")
    parser.add_argument("--fault", action="append", default=[], help="KIND@AT[/EVERY][:VALUE], may be repeated")
    parser.add_argument("--session-file", type=Path, help="write the session string there (mode 0600)")
    return parser.parse_args()


async def main() -> None:
    args = arguments()
    chats = [
        made_chat(1000 + n, args.messages, username="demo" if n == 1 else f"demo{n}", title=f"Demo chat {n}")
        for n in range(1, args.chats + 1)
    ]
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    faults = [parse_fault(text) for text in args.fault]
    async with Server(World(chats), faults, latency_s=args.latency_s, port=args.port) as server:
        server.keep_log = False
        session = server.session()
        if args.session_file:
            args.session_file.touch(mode=0o600)
            args.session_file.write_text(session)
        print(json.dumps({"port": server.port, "session": session, "chats": [c.username for c in chats]}), flush=True)
        while not stop.is_set():
            if args.grow_per_s:
                chats[0].append()
            try:
                await asyncio.wait_for(stop.wait(), 1 / args.grow_per_s if args.grow_per_s else None)
            except TimeoutError:
                continue


if __name__ == "__main__":
    asyncio.run(main())
