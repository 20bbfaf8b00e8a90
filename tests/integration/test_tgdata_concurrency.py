"""Concurrent calls on one TgData share the connection and the rate limit, and nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from producer.errors import CheckpointConflictError, ConfigError, PermanentError
from producer.tgdata import TgData
from tests.mtproto import Chat, Fault, Server, World, made_chat
from tests.mtproto.running import serving
from tests.mtproto.world import ME_ID

A, B = 12345, 777
IDS = {A: list(range(1, 1251)), B: list(range(1, 701))}


def chats() -> list[Chat]:
    return [made_chat(A, 1250, username="demo"), made_chat(B, 700, username="other")]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(World(chats()), latency_s=0.002) as server:
        yield server


def client(server: Server, **settings: Any) -> TgData:
    return TgData(api_id=1, api_hash="secret", session=server.session(), min_delay_s=0, **settings)


def last_id(path: Path) -> int:
    return int(json.loads(path.read_text())["last_message_id"])


async def gather_frames(batches: AsyncIterator[Any]) -> list[int]:
    return [number async for batch in batches for number in batch["id"]]


async def in_one(tg: TgData, group: int | str, **more: Any) -> list[int]:
    return list((await tg.get_messages(group, **more))["id"])


async def in_batches(tg: TgData, group: int | str, **more: Any) -> list[int]:
    return await gather_frames(tg.get_all_messages(group, batch_size=100, **more))


async def in_batch_mode(tg: TgData, group: int | str, **more: Any) -> list[int]:
    return await gather_frames(await tg.get_messages(group, batch_mode=True, batch_size=100, **more))


async def with_adaptive_batches(tg: TgData, group: int | str, **more: Any) -> list[int]:
    return await gather_frames(tg.get_all_messages(group, use_adaptive_sizing=True, **more))


async def with_callback(tg: TgData, group: int | str, **more: Any) -> list[int]:
    async def callback(current: int, total: int | None, rate: float) -> None:
        await asyncio.sleep(0)

    return await in_batches(tg, group, progress_callback=callback, **more)


Method = Callable[..., Coroutine[Any, Any, list[int]]]
METHODS: list[Method] = [in_one, in_batches, in_batch_mode, with_adaptive_batches, with_callback]


@pytest.mark.parametrize(("method", "entered"), [*((method, False) for method in METHODS), (in_one, True)])
async def test_each_call_gets_its_own_chat_and_moves_its_own_checkpoint(
    server: Server, tmp_path: Path, method: Method, entered: bool
) -> None:
    tg = client(server)
    groups: list[tuple[int, int | str]] = [(A, A), (B, B), (A, "@demo"), (B, "@other"), (A, A)]
    files = [tmp_path / f"{number}.json" for number in range(len(groups))]

    async def read_all() -> list[list[int]]:
        calls = [method(tg, group, checkpoint_file=file) for (_, group), file in zip(groups, files, strict=True)]
        return list(await asyncio.gather(*calls))

    if entered:
        async with tg:
            found = await read_all()
    else:
        found = await read_all()
    assert found == [IDS[chat] for chat, _ in groups]
    assert [last_id(file) for file in files] == [len(IDS[chat]) for chat, _ in groups]
    assert sorted(tmp_path.iterdir()) == files
    assert server.open_connections == 0 or entered


async def test_all_methods_run_concurrently_over_faults(tmp_path: Path) -> None:
    faults = [Fault("drop", 30), Fault("error", 9, every=31, value="500:INTERNAL"), Fault("flood", 70)]
    async with Server(World(chats()), faults, latency_s=0.002) as server, client(server) as tg:
        jobs = [(method, chat) for method in METHODS for chat in (A, B)]
        found = await asyncio.gather(*(method(tg, chat) for method, chat in jobs))
    assert found == [IDS[chat] for _, chat in jobs]


@pytest.mark.parametrize("method", [in_one, in_batches, in_batch_mode])
async def test_a_cancelled_call_disturbs_no_other_and_its_messages_come_again(
    server: Server, tmp_path: Path, method: Method
) -> None:
    tg = client(server)
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    cancelled = asyncio.create_task(method(tg, A, checkpoint_file=first))
    others = [asyncio.create_task(method(tg, chat, checkpoint_file=file)) for chat, file in ((B, second), (A, None))]
    while len(server.log) < 12:
        await asyncio.sleep(0.001)
    cancelled.cancel()
    assert [await other for other in others] == [IDS[B], IDS[A]]
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    reached = last_id(first) if first.exists() else 0
    assert reached < 1250
    assert await in_batches(tg, A, checkpoint_file=first) == list(range(reached + 1, 1251))
    assert last_id(second) == 700


async def test_an_error_in_one_call_disturbs_no_other(server: Server, tmp_path: Path) -> None:
    tg = client(server)

    def fail(current: int, total: int | None, rate: float) -> None:
        raise RuntimeError("in the callback")

    async def fail_in_loop() -> None:
        async for _ in tg.get_all_messages(A, checkpoint_file=tmp_path / "a.json", batch_size=100):
            raise RuntimeError("in the loop")

    found: tuple[object, ...] = await asyncio.gather(
        in_one(tg, A, progress_callback=fail, checkpoint_file=tmp_path / "c.json"),
        fail_in_loop(),
        in_one(tg, 404),
        in_batches(tg, B, checkpoint_file=tmp_path / "b.json"),
        in_one(tg, A),
        return_exceptions=True,
    )
    assert [type(one).__name__ for one in found[:3]] == ["RuntimeError", "RuntimeError", "ConfigError"]
    assert list(found[3:]) == [IDS[B], IDS[A]]
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


async def test_blocks_of_two_tasks_settle_their_own_checkpoints(server: Server, tmp_path: Path) -> None:
    tg = client(server)
    read = asyncio.Event()

    async def process(chat: int, path: Path, *, fails: bool) -> None:
        async with tg:
            await tg.get_messages(chat, checkpoint_file=path)
            if fails:
                read.set()
                raise RuntimeError("while processing")
            await read.wait()

    done = await asyncio.gather(
        process(A, tmp_path / "a.json", fails=True),
        process(B, tmp_path / "b.json", fails=False),
        return_exceptions=True,
    )
    assert [type(one).__name__ for one in done] == ["RuntimeError", "NoneType"]
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
    assert last_id(tmp_path / "b.json") == 700


async def test_a_call_for_another_file_leaves_a_checkpoint_that_is_not_settled_yet(
    server: Server, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    async with client(server) as tg:
        await tg.get_messages(A, checkpoint_file=first)
        await tg.get_messages(B, checkpoint_file=second)
        assert not first.exists()
        assert not second.exists()
        await tg.get_messages(A, checkpoint_file=first)
        assert (last_id(first), second.exists()) == (1250, False)
    assert (last_id(first), last_id(second)) == (1250, 700)


@pytest.mark.parametrize("method", [in_one, in_batches])
async def test_close_ends_what_is_being_read_and_the_next_call_connects_again(tmp_path: Path, method: Method) -> None:
    path = tmp_path / "a.json"
    async with Server(World(chats()), [Fault("flood", 8, value=500)]) as server:
        tg = client(server)
        reading = asyncio.create_task(method(tg, A, checkpoint_file=path))
        while server.script.seen["GetHistoryRequest"] < 8:
            await asyncio.sleep(0.001)
        await tg.close()
        with pytest.raises(PermanentError, match="TgData was closed while it was reading"):
            await reading
        reached = last_id(path) if path.exists() else 0
        server.script.faults.clear()
        again = client(server)
        assert await in_batches(again, A, checkpoint_file=path) == list(range(reached + 1, 1251))
        await again.close()
        assert await in_one(again, B) == IDS[B]


async def test_close_ends_a_pause_between_two_batches_at_once(server: Server) -> None:
    tg, delivered = client(server), asyncio.Event()

    async def read() -> None:
        async for _ in tg.get_all_messages(A, batch_size=100, delay=600):
            delivered.set()

    reading = asyncio.create_task(read())
    await delivered.wait()
    async with asyncio.timeout(20):
        await tg.close()
        with pytest.raises(PermanentError, match="TgData was closed while it was reading"):
            await reading


def test_one_object_serves_one_event_loop_after_the_other_and_refuses_two_at_once() -> None:
    with serving(World(chats())) as server:
        tg = client(server)

        async def both() -> list[list[int]]:
            return list(await asyncio.gather(in_one(tg, A), in_batches(tg, B), in_one(tg, A)))

        for _ in range(3):
            assert asyncio.run(both()) == [IDS[A], IDS[B], IDS[A]]
        refused: list[str] = []

        async def read_in_another_thread() -> None:
            async with tg:
                thread = threading.Thread(target=lambda: refused.append(str(_error_of(in_one(tg, B)))))
                thread.start()
                await asyncio.to_thread(thread.join)

        asyncio.run(read_in_another_thread())
        assert refused == ["this TgData is in use in another event loop (make one TgData for each loop)"]


def _error_of(call: Coroutine[Any, Any, object]) -> Exception | None:
    async def run() -> None:
        await call

    try:
        asyncio.run(run())
    except ConfigError as error:
        return error
    return None


# --- the checkpoint's owner, and its lock ----------------------------------------------------------------------------


async def test_two_calls_for_one_file_never_deliver_it_twice(server: Server, tmp_path: Path) -> None:
    path, link = tmp_path / "checkpoint.json", tmp_path / "link.json"
    link.symlink_to(path)
    tg, other = client(server), client(server)
    calls = [in_batches(tg, A, checkpoint_file=path, delay=0.2), in_one(tg, A, checkpoint_file=path),
             in_batch_mode(other, A, checkpoint_file=str(link))]  # fmt: skip
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert found[0] == IDS[A]
    for refused in found[1:]:
        assert isinstance(refused, CheckpointConflictError)
        assert f"checkpoint_file {path}: another run is using it" in str(refused)
    assert await in_one(tg, A, checkpoint_file=path) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.json", "link.json"]


async def test_a_loop_that_was_left_early_gives_its_file_back(server: Server, tmp_path: Path) -> None:
    path, tg = tmp_path / "checkpoint.json", client(server)
    for reached in (0, 100):
        async for batch in tg.get_all_messages(A, checkpoint_file=path, batch_size=100):
            if batch.metadata["last_message_id"] > reached + 100:
                break
        assert last_id(path) == reached + 100
    kept = tg.get_all_messages(A, checkpoint_file=path, batch_size=100)
    await anext(kept)
    with pytest.raises(CheckpointConflictError, match=r"aclose\(\) an iterator that was left early"):
        await in_one(tg, A, checkpoint_file=path)
    await kept.aclose()
    assert await in_one(tg, A, checkpoint_file=path) == list(range(201, 1251))


LOCKING = """
import asyncio, sys
from producer.tgdata.checkpoint_file import CheckpointFile
asyncio.run(CheckpointFile(sys.argv[1]).lock())
print("locked", flush=True)
sys.stdin.read()
"""


async def test_the_lock_of_another_process_holds_until_that_is_killed(server: Server, tmp_path: Path) -> None:
    path, tg = tmp_path / "checkpoint.json", client(server)
    with subprocess.Popen(
        [sys.executable, "-c", LOCKING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "locked\n"
        with pytest.raises(CheckpointConflictError, match="another run is using it"):
            await in_one(tg, B, checkpoint_file=path)
        process.kill()
    assert await in_one(tg, B, checkpoint_file=path) == IDS[B]
    assert list(tmp_path.iterdir()) == [path]


#: group that reads, what the file says, what the error names (None: accepted)
OWNERS: list[tuple[int | str, dict[str, Any], str | None]] = [
    (A, {"group_id": A}, None),
    (A, {"group_id": str(A)}, None),
    (A, {"group_id": "@demo"}, None),
    ("@demo", {"group_id": A}, None),
    ("https://t.me/demo", {"group_id": "@demo"}, None),
    (f"{-1000000000000 - A}", {"group_id": "@demo", "chat_id": -1000000000000 - A}, None),
    (A, {"group_id": A, "account_id": ME_ID}, None),
    (A, {"group_id": B}, f"it is the checkpoint of group {B}, and group_id {A} is chat -1000000012345"),
    ("@demo", {"group_id": "@other"}, "it is the checkpoint of group @other"),
    (A, {"group_id": "@other"}, "it is the checkpoint of group @other"),
    (A, {"group_id": "@nobody"}, "it is the checkpoint of group @nobody"),
    (A, {"group_id": A, "chat_id": -1000000000000 - B}, "group 12345 .chat -1000000000777."),
    (A, {"group_id": A, "account_id": 4711}, f"it belongs to account 4711, and this account is {ME_ID}"),
]


async def test_a_checkpoint_of_another_chat_or_account_is_refused_and_kept(server: Server, tmp_path: Path) -> None:
    async with client(server) as tg:
        for number, (group, says, error) in enumerate(OWNERS):
            path = tmp_path / f"{number}.json"
            text = json.dumps({"last_message_id": 600, "total_processed": 600} | says)
            path.write_text(text)
            if error is None:
                assert await in_batches(tg, group, checkpoint_file=path) == list(range(601, 1251)), says
                continue
            for method in METHODS:
                with pytest.raises(CheckpointConflictError, match=error):
                    await method(tg, group, checkpoint_file=path)
            assert path.read_text() == text
