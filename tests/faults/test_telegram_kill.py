"""Owns the claim that a chat goes to Kafka whole: under floods, drops, hangs and kills, each id is delivered."""

from __future__ import annotations

from pathlib import Path

import pytest

from producer.unit import WINDOW_PAGES
from tests.audit import TopicAudit
from tests.faults.killing import kill_until_done, write_config
from tests.mtproto.running import process

MESSAGES = 100_000
CHAT_ID = -1000000001001
FAULTS = ("flood@90/500:1", "premium@333/700:1", "drop@37/211", "hang@120/600", "salt@50/300", "empty@61/240",
          "error@77/900:500:INTERNAL")  # fmt: skip
KEY_SCHEMA = {
    "type": "record",
    "name": "MessageKey",
    "fields": [{"name": "chat_id", "type": "long"}, {"name": "id", "type": "long"}],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("traversal", "splits", "kills"), [("ID_RANGE", 1, 5), ("ID_RANGE", 3, 5), ("OFFSET", 1, 2)])
def test_all_messages_arrive_under_floods_drops_hangs_and_kills(
    traversal: str, splits: int, kills: int, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    messages = MESSAGES if traversal == "ID_RANGE" else MESSAGES // 8
    faults = [argument for fault in FAULTS for argument in ("--fault", fault)]
    with process("--messages", str(messages), *faults) as session:
        account = {"type": "telegram", "api_id": 1, "api_hash": "none", "session": session}
        config = write_config(
            tmp_path,
            {
                "app": unique,
                "kafka": {"bootstrap_servers": kafka_bootstrap},
                "checkpoints": {"type": "file", "path": "state"},
                "http": {"port": 0},
                "sources": {"account": account | {"min_delay_s": 0, "request_timeout_s": 1.0, "adaptive": False}},
                "streams": [
                    {"name": "demo", "source": "account", "chat": "@demo", "topic": unique, "partitions": 4,
                     "page_size": 2000, "max_parallel": splits, "traversal": traversal}
                ],
            },
        )  # fmt: skip
        audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA)
        try:
            killed = kill_until_done(
                config,
                "demo",
                [(CHAT_ID, number) for number in range(1, messages + 1)],
                audit,
                kills=kills,
                window=splits * WINDOW_PAGES * 2000,
                seed=splits,
            )
        finally:
            audit.close()
    assert killed.kills == kills
