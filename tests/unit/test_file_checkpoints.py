"""Owns what only the file store promises: a crash at any instruction, corruption, a full disk, two processes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from producer.checkpoints.file import FileCheckpointStore
from producer.config import Config
from producer.errors import CheckpointConflictError, CheckpointCorruptError, ConfigError, PermanentError
from producer.model import Checkpoint, KeyPosition, Split, StreamState


def store_in(directory: Path) -> FileCheckpointStore:
    return FileCheckpointStore(
        Config.model_validate(
            {
                "checkpoints": {"type": "file", "path": str(directory)},
                "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
                "streams": [{"name": "t", "source": "s", "table": "t"}],
            }
        )
    )


def at(position: int) -> Checkpoint:
    return Checkpoint(Split("0"), KeyPosition((position,)), rows=position)


@pytest.mark.parametrize("step", ["open", "fsync", "rename", "fsync_directory"])
async def test_a_save_that_breaks_off_at_any_step_leaves_the_old_state_or_the_new_one(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    await store.start()
    epoch = await store.claim("t")
    await store.begin(StreamState("t", "f", epoch, (at(1),)))

    def full(*args: object, **kwargs: object) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        match step:
            case "open":
                patch.setattr("producer.checkpoints.file.open", full, raising=False)
            case "fsync_directory":
                patch.setattr("producer.checkpoints.file._fsync_directory", full)
            case _:
                patch.setattr(f"producer.checkpoints.file.os.{step}", full)
        with pytest.raises(PermanentError, match="No space left on device") as caught:
            await store.commit("t", epoch, [at(2)])
    assert "'t'" in caught.value.message
    loaded = await store.load("t")
    assert loaded is not None
    assert loaded.checkpoints in ((at(1),), (at(2),))
    await store.commit("t", epoch, [at(3)])  # there is room again
    loaded = await store.load("t")
    assert loaded is not None
    assert loaded.checkpoints == (at(3),)
    await store.close()


@contextmanager
def no_room() -> Iterator[None]:
    """Every write to a file fails inside, as on a full disk; the test run's own log included, so keep it short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_without_room_is_reported_and_leaves_no_torn_file(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.start()
    epoch = await store.claim("t")
    with pytest.raises(PermanentError, match="cannot be saved"), no_room():
        await store.begin(StreamState("t", "f", epoch, (at(1),)))
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []
    await store.close()


WRITER = """
    import asyncio, sys
    from pathlib import Path
    from producer.model import StreamState
    from tests.unit.test_file_checkpoints import at, store_in

    async def main():
        store = store_in(Path(sys.argv[1]))
        await store.start()
        epoch = await store.claim("t")
        state = await store.load("t")
        n = state.checkpoints[0].rows if state else 0
        if state is None:
            await store.begin(StreamState("t", "f", epoch, (at(0),)))
        while True:
            n += 1
            await store.commit("t", epoch, [at(n)])
            print(n, flush=True)

    asyncio.run(main())
"""


def test_a_process_killed_while_it_commits_leaves_what_it_had_said_was_committed(tmp_path: Path) -> None:
    told = 0
    for kill in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                told = int(line)
                if told % 17 == kill:
                    process.send_signal(signal.SIGKILL)
                    break
            told = max([told, *map(int, process.stdout.read().split())])
        state = asyncio.run(store_in(tmp_path).load("t"))
        assert state is not None
        assert told <= state.checkpoints[0].rows <= told + 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"crc32":1,"state":{}}',
        b'{"state":{"version":1}}',
    ],
)
async def test_a_corrupt_checkpoint_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.checkpoint.json"
    path.write_bytes(content)
    store = store_in(tmp_path)
    await store.start()
    with pytest.raises(CheckpointCorruptError, match="checkpoint reset CONFIG t"):
        await store.load("t")
    with pytest.raises(CheckpointCorruptError):
        await store.claim("t")
    assert path.read_bytes() == content
    assert await store.reset("t") is True
    await store.close()


async def test_a_single_changed_character_is_noticed(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.start()
    await store.begin(StreamState("t", "f", await store.claim("t"), (at(12345),)))
    path = tmp_path / "t.checkpoint.json"
    path.write_text(path.read_text().replace("12345", "12346"))
    with pytest.raises(CheckpointCorruptError, match="checksum"):
        await store.load("t")
    await store.close()


async def test_a_checkpoint_of_another_stream_in_the_file_is_refused(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.start()
    await store.begin(StreamState("t", "f", await store.claim("t"), (at(1),)))
    (tmp_path / "t.checkpoint.json").rename(tmp_path / "u.checkpoint.json")
    with pytest.raises(CheckpointCorruptError, match="belongs to the stream 't'"):
        await store.load("u")
    await store.close()


async def test_a_second_process_is_told_who_holds_the_stream_until_the_first_dies(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        store = store_in(tmp_path)
        await store.start()
        with pytest.raises(CheckpointConflictError, match="being run by another process"):
            await store.claim("t")
        with pytest.raises(CheckpointConflictError):
            await store.reset("t")
    finally:
        process.kill()
        process.communicate()
    assert await store.claim("t") > 1
    await store.close()


async def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"checkpoints\.path"):
        await store_in(tmp_path / "file" / "state").start()


async def test_a_stream_name_never_leaves_the_directory(tmp_path: Path) -> None:
    store = store_in(tmp_path / "state")
    await store.start()
    for name in ("../up", "/root", "..", ".hidden", "a/b", "x" * 60 + "ü"):
        await store.begin(StreamState(name, "f", await store.claim(name), (at(1),)))
    assert sorted(await store.streams()) == sorted(["../up", "/root", "..", ".hidden", "a/b", "x" * 60 + "ü"])
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    await store.close()


async def test_the_file_is_plain_json_with_a_checksum(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.start()
    await store.begin(StreamState("t", "f", await store.claim("t"), (at(7),)))
    document = json.loads((tmp_path / "t.checkpoint.json").read_text())
    assert document["state"]["splits"][0]["position"] == {"key": [7]}
    await store.close()
