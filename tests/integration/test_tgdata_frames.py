"""The frames of TgData: rows of plain Python values however they are taken, and the tgdata package's column names."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from redis.asyncio import Redis

from producer.sources.telegram import record
from producer.tgdata import MessageFrame, TgData
from producer.tgdata.frame import ORIGINAL_COLUMNS
from tests.mtproto import Chat, Server, World, build, made_chat

GROUP = 12345
BIG = 2**62 + 1  #: no float holds it

Row = Mapping[str, Any]
PLAIN = {
    pa.int64(): int,
    pa.int32(): int,
    pa.float64(): float,
    pa.bool_(): bool,
    pa.string(): str,
    pa.timestamp("ms", tz="UTC"): pd.Timestamp,
}


@pytest.fixture
def chat() -> Chat:
    chat = made_chat(GROUP, 40, username="demo", kind="channel")
    chat.put(build(41, chat.peer, kind="document", grouped_id=BIG))
    chat.put(build(42, chat.peer, kind="reply", edit_date=dt.datetime(2025, 6, 1, tzinfo=dt.UTC)))
    return chat


@pytest.fixture
async def server(chat: Chat) -> AsyncIterator[Server]:
    private = Chat(900, "user", ids=[1, 2])
    async with Server(World([chat, private, Chat(77, "group", ids=[1])])) as server:
        yield server


@pytest.fixture
async def frame(server: Server) -> MessageFrame:
    return await client(server).get_messages(GROUP)


def client(server: Server, **more: Any) -> TgData:
    return TgData(api_id=1, api_hash="secret", session=server.session(), min_delay_s=0, **more)


def by_apply(frame: pd.DataFrame) -> Iterator[Row]:
    rows: list[Row] = []
    frame.apply(lambda row: rows.append(row.to_dict()), axis=1)
    yield from rows


#: every way to take the rows of a frame
WAYS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "iloc": lambda f: (f.iloc[i] for i in range(len(f))),
    "loc": lambda f: (f.loc[label] for label in f.index),
    "xs": lambda f: (f.xs(label) for label in f.index),
    "iterrows": lambda f: (row for _, row in f.iterrows()),
    "itertuples": lambda f: (row._asdict() for row in f.itertuples(index=False)),
    "records": lambda f: f.to_dict("records"),
    "dict": lambda f: (
        dict(zip(f.columns, values, strict=True)) for values in zip(*f.to_dict("list").values(), strict=True)
    ),
    "index": lambda f: f.to_dict("index").values(),
    "apply": by_apply,
    "row_to_dict": lambda f: (f.iloc[i].to_dict() for i in range(len(f))),
    "row_items": lambda f: (dict(f.iloc[i].items()) for i in range(len(f))),
    "row_get": lambda f: ({c: row.get(c) for c in f.columns} for row in (f.iloc[i] for i in range(len(f)))),
}
#: what of the frame is taken, also columns of one type alone, which pandas would make numpy arrays of
PARTS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "whole": lambda f: f,
    "ints": lambda f: f[["id", "reply_to_id", "grouped_id"]],
    "one_column": lambda f: f[["grouped_id"]],
    "texts": lambda f: f[["text", "media_name"]],
    "dates": lambda f: f[["date", "edit_date"]],
    "floats": lambda f: f[["media_duration_s"]],
    "flags": lambda f: f[["pinned", "outgoing"]],
    "filtered": lambda f: f[f["id"] > 30],
    "sorted": lambda f: f.sort_values("id", ascending=False),
    "tail": lambda f: f.tail(2),
    "copied": lambda f: f.copy().reset_index(drop=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_row_has_plain_values_and_none_however_it_is_taken(frame: MessageFrame, way: str) -> None:
    truth = {int(row["id"]): row for row in pa.Table.from_pandas(pd.DataFrame(frame)).to_pylist()}
    for name, part_of in PARTS.items():
        part = part_of(frame)
        rows = list(WAYS[way](part))
        assert len(rows) == len(part) > 0, name
        for number, row in zip(frame.loc[part.index, "id"] if name != "copied" else part["id"], rows, strict=True):
            for column in part.columns:
                value, kind = row[column], PLAIN[record.SCHEMA.field(column).type]
                assert type(value) is (type(None) if truth[number][column] is None else kind), (name, column)
                assert value == truth[number][column], (name, column)
            json.dumps(dict(row), default=dt.datetime.isoformat)


def test_single_values_of_a_column_are_plain(frame: MessageFrame) -> None:
    for column in frame.columns:
        if frame[column].notna().any():
            last = frame[column].last_valid_index()
            kind = PLAIN[record.SCHEMA.field(column).type]
            at = frame.columns.get_loc(column)
            values = [frame.loc[last, column], frame.at[last, column], frame.iat[last, at], frame[column].iloc[last],
                      frame[column][last], frame[column].tolist()[last], list(frame[column])[last]]  # fmt: skip
            assert {type(value) for value in values} == {kind}, column
    assert type(frame["id"].max()) is type(frame["id"].sum()) is int
    assert frame["grouped_id"].dropna().tolist() == [BIG]


def test_columns_compute_as_columns_do(frame: MessageFrame) -> None:
    assert frame["reply_to_id"].isna().any()
    assert len(frame[frame["date"] >= dt.datetime(2024, 1, 1, 0, 30, tzinfo=dt.UTC)]) == 13
    assert frame[frame["text"].str.contains("000000007", na=False)]["id"].tolist() == [7]
    assert frame.groupby("kind")["id"].count().sum() == 42
    assert (frame["id"] // 10).max() == 4
    assert str(frame.isna().sum().dtype) == "int64"
    assert len(pd.concat([frame, frame]).drop_duplicates("id")) == 42


async def test_a_rows_values_go_into_redis_and_json_as_the_guide_has_it(frame: MessageFrame, redis_url: str) -> None:
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        await redis.hset("frame", mapping={"last_id": frame.iloc[-1]["id"], "timestamp": 1.5})
        assert (await redis.hgetall("frame"))["last_id"] == "42"
    assert json.dumps({"last_id": frame.iloc[-1]["id"], "pinned": frame.iloc[-1]["pinned"]})


# --- the names of the tgdata package ---------------------------------------------------------------------------------


async def test_the_original_column_names_are_there_where_asked_for(server: Server, frame: MessageFrame) -> None:
    tg = client(server, original_columns=True)
    theirs = await tg.get_messages(GROUP)
    assert list(theirs.columns) == list(ORIGINAL_COLUMNS.values())
    for ours, name in ORIGINAL_COLUMNS.items():
        if name not in ("ChatId", "Username"):
            assert theirs[name].equals(frame[ours]), name
    assert set(theirs["ChatId"]) == {GROUP}
    assert theirs["Username"].tolist() == ["@" + name for name in frame["sender_username"]]
    assert type(theirs.iloc[-1]["MessageId"]) is int
    assert [set((await tg.get_messages(group))["ChatId"]) for group in (900, -77)] == [{900}, {77}]
    assert [list(batch.columns) async for batch in tg.get_all_messages(-77)] == [list(theirs.columns)]
    assert list((await tg.get_messages(GROUP, after_id=42)).columns) == list(theirs.columns)


def test_an_original_name_that_was_not_asked_for_is_explained(frame: MessageFrame) -> None:
    with pytest.raises(KeyError, match=r"MessageId: it is named id here; TgData\(..., original_columns=True\)"):
        frame["MessageId"]
    with pytest.raises(KeyError, match="'nothing'"):
        frame["nothing"]
