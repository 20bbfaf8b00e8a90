"""Owns reading a chat with the published tgdata package, in the environment that has it: its default way, timed.

    python benchmarks/telegram_published.py SESSION_STRING MESSAGES

Imports nothing of ours. Prints one line of JSON: rows, seconds, rows_per_second.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

GROUP = -1000000001001


def configuration(folder: Path, session_string: str) -> Path:
    """Its configuration and session file, made from the session string."""
    from telethon.sessions import SQLiteSession, StringSession

    given = StringSession(session_string)
    kept = SQLiteSession(str(folder / "account"))
    kept.set_dc(given.dc_id, given.server_address, given.port)
    kept.auth_key = given.auth_key
    kept.save()
    kept.close()
    path = folder / "config.ini"
    path.write_text(
        f"[telegram]\napi_id = 1\napi_hash = none\nusername = demo\nphone = +1\nsession_file = {folder / 'account'}\n"
    )
    return path


async def read(config: Path, messages: int) -> dict[str, float]:
    tg = importlib.import_module("tgdata").TgData(config_path=str(config))
    await tg.list_groups()
    started = time.perf_counter()
    frame = await tg.get_messages(group_id=GROUP, limit=messages)
    seconds = time.perf_counter() - started
    return {"rows": len(frame), "seconds": seconds, "rows_per_second": len(frame) / seconds}


def main() -> None:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(read(configuration(Path(folder), sys.argv[1]), int(sys.argv[2])))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
