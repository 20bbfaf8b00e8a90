"""Which checkpoints `producer checkpoint adopt` carries over."""

from __future__ import annotations

import pyarrow as pa
import pytest

from producer.commands.checkpoint_adopt import _differences
from producer.config import StreamConfig
from producer.errors import ConfigError
from producer.identity import Identity
from producer.model import Dataset, StreamState

STREAM = StreamConfig(name="s", source="telegram", chat="news", topic="t")


@pytest.mark.parametrize(("chat", "carried"), [("-1001234567890", True), ("-4567", False), ("777", False)])
def test_the_checkpoint_of_another_account_is_carried_over_for_channels_only(chat: str, carried: bool) -> None:
    """In other chats each account numbers the messages in its own way."""
    dataset = Dataset(name=chat, schema=pa.schema([]), key=(), order=(), identity={"chat": chat})
    before = Identity({"source": "telegram", "account": "1", "chat": chat}, query="q")
    state = StreamState("s", dataset.fingerprint(STREAM.traversal), 1, (), identity=before)
    now = before.also(account="2")
    if carried:
        assert [difference.what for difference in _differences(state, STREAM, dataset, now, ())] == ["account"]
    else:
        with pytest.raises(ConfigError, match="another account") as refused:
            _differences(state, STREAM, dataset, now, ())
        assert "checkpoint reset CONFIG s" in refused.value.hint
