"""Owns the claims about a changed mode: which checkpoints are gone on with, which are refused and with what way out."""

from __future__ import annotations

from typing import Any

import pytest

from producer.config import StreamConfig
from producer.errors import OtherQueryError
from producer.model import Checkpoint, KeyPosition, Split
from producer.modes import refuse_other_mode, tail_after

END = KeyPosition((100,))
MIDDLE = KeyPosition((50,))
LOOKED: dict[str, Any] = {"holes": []}

SNAPSHOT = [Checkpoint(Split("0", None, MIDDLE), done=True), Checkpoint(Split("1", MIDDLE, END))]
FOLLOWED = [*SNAPSHOT, Checkpoint(Split("2", END), detail=LOOKED)]
TAIL = [Checkpoint(Split("0"), END, detail=LOOKED)]
LATEST = [Checkpoint(Split("0", END), detail=LOOKED)]
EMPTY = [Checkpoint(Split("0"), done=True)]  # the snapshot of a table without rows
REPLAY = Checkpoint(Split("replay-1", None, END))

CHAT = [Checkpoint(Split("chat-7", KeyPosition((-7, 0)), KeyPosition((-7, 9)))),
        Checkpoint(Split("0", KeyPosition((-8, 0)), KeyPosition((-8, 40))))]  # fmt: skip
CHAT_TAIL = [Checkpoint(Split("tail", KeyPosition((-8, 40))))]


def stream(mode: str, start: str = "beginning", **more: Any) -> StreamConfig:
    order = {"order_by": ["changed"]} if mode == "timestamp" else {}
    of = more or {"table": "events"}
    return StreamConfig.model_validate({"source": "s", "name": "e", "mode": mode, "start": start, **order, **of})


@pytest.mark.parametrize(
    ("made", "config"),
    [
        pytest.param(made, config, id=f"{name} to {config.mode} from {config.start}")
        for name, made, configs in (
            ("snapshot", SNAPSHOT, [*map(stream, ("snapshot", "tail", "snapshot_then_tail", "timestamp"))]),
            ("snapshot_then_tail", FOLLOWED, [*map(stream, ("tail", "snapshot_then_tail")), stream("tail", "latest")]),
            ("tail", TAIL, [*map(stream, ("tail", "snapshot_then_tail", "timestamp")), stream("tail", "latest")]),
            ("latest", LATEST, [stream("tail", "latest"), stream("timestamp", "latest")]),
            ("empty", EMPTY, [*map(stream, ("snapshot", "tail", "snapshot_then_tail"))]),
            ("chat", CHAT, [stream(mode, chat="@c") for mode in ("snapshot", "tail", "snapshot_then_tail")]),
            ("chat's tail", CHAT_TAIL, [stream("tail", chat="@c")]),
        )
        for config in configs
    ],
)
def test_a_change_that_leaves_no_row_out_is_gone_on_with(made: list[Checkpoint], config: StreamConfig) -> None:
    refuse_other_mode(config, [*made, REPLAY])


@pytest.mark.parametrize(
    ("made", "config", "reason"),
    [
        (FOLLOWED, stream("snapshot"), "is that of a stream that is followed"),
        (TAIL, stream("snapshot"), "is that of a stream that is followed"),
        (LATEST, stream("snapshot"), "is that of a stream that is followed"),
        (LATEST, stream("snapshot_then_tail"), "began after the rows that were there"),
        (LATEST, stream("tail"), "began after the rows that were there"),
        (LATEST, stream("timestamp"), "began after the rows that were there"),
        (CHAT_TAIL, stream("snapshot", chat="@c"), "is that of a stream that is followed"),
        (CHAT_TAIL, stream("snapshot_then_tail", chat="@c"), "began after the rows that were there"),
    ],
)
def test_a_change_that_would_leave_rows_out_is_refused_with_the_way_out(
    made: list[Checkpoint], config: StreamConfig, reason: str
) -> None:
    with pytest.raises(OtherQueryError, match=reason) as refused:
        refuse_other_mode(config, [*made, REPLAY])
    assert "producer checkpoint reset CONFIG e" in refused.value.hint


@pytest.mark.parametrize("mode", ["tail", "snapshot_then_tail", "timestamp"])
def test_a_snapshot_that_is_followed_later_gets_a_split_from_its_end_on(mode: str) -> None:
    assert tail_after(stream(mode), [*SNAPSHOT, REPLAY]) == Split("2", END)
    assert tail_after(stream(mode), FOLLOWED) is None
    assert tail_after(stream("snapshot"), SNAPSHOT) is None


def test_a_chats_snapshot_is_followed_where_the_chat_ends_and_not_what_it_was_before() -> None:
    assert tail_after(stream("snapshot_then_tail", chat="@c"), CHAT) == Split("1", KeyPosition((-8, 40)))
