"""Owns the claims about `producer checkpoint copy`: whole states, between any two stores, and never over newer ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from producer.checkpoints import STORES
from producer.cli import main
from producer.config import load_config
from producer.identity import Identity
from producer.model import Checkpoint, KeyPosition, Split, StreamState
from producer.parts import make_store
from producer.protocols import CheckpointStore

CHECKPOINTS = (
    Checkpoint(Split("0", None, KeyPosition((b"\x00", 5))), KeyPosition((b"\x00", 3)), 12, detail={"holes": [1]}),
    Checkpoint(Split("1", KeyPosition((b"\x00", 5)), None), KeyPosition((b"x", 9)), 30, done=True),
)

Configs = dict[str, Path]


@pytest.fixture
def settings(
    tmp_path: Path, kafka_bootstrap: str, postgres_dsn: str, redis_url: str, unique: str
) -> dict[str, dict[str, Any]]:
    return {
        "file": {"type": "file", "path": str(tmp_path / "state")},
        "kafka": {"type": "kafka"},
        "postgres": {"type": "postgres", "url": postgres_dsn},
        "redis": {"type": "redis", "url": redis_url},
    }


@pytest.fixture
def configs(settings: dict[str, dict[str, Any]], tmp_path: Path, kafka_bootstrap: str, unique: str) -> Configs:
    """A configuration for each kind of store, of one application."""
    found = {}
    for kind, store in settings.items():
        document = {
            "app": unique,
            "kafka": {"bootstrap_servers": kafka_bootstrap},
            "checkpoints": store,
            "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
            "streams": [{"name": unique, "source": "s", "table": "t"}],
        }
        found[kind] = tmp_path / f"{kind}.yaml"
        found[kind].write_text(yaml.safe_dump(document))
    return found


def within(config: Path, work: Callable[[CheckpointStore], Any]) -> Any:
    async def run() -> Any:
        store = make_store(load_config(config))
        await store.start()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def write(
    config: Path,
    stream: str,
    *,
    claims: int = 1,
    rows: int = 12,
    fingerprint: str = "f00d",
    identity: Identity | None = None,
) -> None:
    async def work(store: CheckpointStore) -> None:
        epoch = 0
        for _ in range(claims):
            epoch = await store.claim(stream, epoch)
        first = Checkpoint(CHECKPOINTS[0].split, KeyPosition((b"\x00", 4)), rows, detail={"holes": [1]})
        checkpoints = CHECKPOINTS if rows == 12 else (first, CHECKPOINTS[1])
        await store.begin(StreamState(stream, fingerprint, epoch, checkpoints, identity=identity))

    within(config, work)


def read(config: Path, stream: str) -> StreamState:
    state = within(config, lambda store: store.load(stream))
    assert isinstance(state, StreamState)
    return state


def arguments(kind: str, settings: dict[str, dict[str, Any]]) -> list[str]:
    """The options for the store that is not configured."""
    return [text for key in ("path", "url") if key in settings[kind] for text in (f"--{key}", settings[kind][key])]


@pytest.mark.parametrize(("source", "target"), [(a, b) for a in sorted(STORES) for b in sorted(STORES) if a != b])
def test_a_copy_is_whole_and_its_epoch_is_newer(
    source: str, target: str, configs: Configs, settings: dict[str, dict[str, Any]], unique: str
) -> None:
    write(configs[source], unique, claims=7)
    before = read(configs[source], unique)
    command = ["checkpoint", "copy", str(configs[source]), "--from", source, "--to", target]
    assert main([*command, *arguments(target, settings)]) == 0
    copied = read(configs[target], unique)
    assert (copied.fingerprint, copied.checkpoints) == (before.fingerprint, before.checkpoints)
    assert copied.epoch > before.epoch
    assert read(configs[source], unique).checkpoints == before.checkpoints


def test_the_configured_store_is_the_default_of_one_side(
    configs: Configs, settings: dict[str, dict[str, Any]], unique: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(configs["file"], unique)
    config = str(configs["postgres"])
    assert main(["checkpoint", "copy", config, "--from", "file", "--path", settings["file"]["path"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"stream": unique, "epoch": 3, "splits": 2}]
    assert main(["checkpoint", "copy", config, "--to", "file", "--path", settings["file"]["path"] + "2"]) == 0


def test_the_checkpoint_of_another_app_is_not_copied_and_not_claimed(
    configs: Configs, settings: dict[str, dict[str, Any]], unique: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A claim would end the other app's run."""
    write(configs["redis"], unique, identity=Identity({"app": "other"}))
    before = read(configs["redis"], unique)
    command = ["checkpoint", "copy", str(configs["redis"]), "--to", "file", *arguments("file", settings)]
    assert main(command) == 1
    assert "app 'other'" in capsys.readouterr().err
    assert read(configs["redis"], unique).epoch == before.epoch


@pytest.mark.parametrize("newer", [{"rows": 13}, {"fingerprint": "beef"}])
def test_a_newer_checkpoint_and_one_of_another_query_are_kept_unless_forced(
    newer: dict[str, Any],
    configs: Configs,
    settings: dict[str, dict[str, Any]],
    unique: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(configs["file"], unique)
    write(configs["postgres"], unique, **newer)
    kept = read(configs["postgres"], unique)
    command = ["checkpoint", "copy", str(configs["file"]), unique, "--to", "postgres", *arguments("postgres", settings)]
    assert main(command) == 1
    assert "--force" in capsys.readouterr().err
    assert read(configs["postgres"], unique) == kept
    assert main([*command, "--force"]) == 0
    copied = read(configs["postgres"], unique)
    assert copied.checkpoints == CHECKPOINTS
    assert copied.epoch > kept.epoch


def test_a_stream_that_is_being_run_is_not_copied(
    configs: Configs, settings: dict[str, dict[str, Any]], unique: str
) -> None:
    write(configs["file"], unique)

    async def work(store: CheckpointStore) -> int:
        await store.claim(unique)
        command = ["checkpoint", "copy", str(configs["file"]), "--to", "postgres", *arguments("postgres", settings)]
        return await asyncio.to_thread(main, command)

    assert within(configs["file"], work) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "both sides are the configured store"),
        (["--from", "redis", "--to", "kafka"], "neither side is the configured store"),
        (["--to", "redis"], "a store of type redis takes --url"),
        (["--to", "kafka", "--path", "x"], "a store of type kafka takes neither"),
        (["nothing", "--to", "kafka"], "stream 'nothing' has no checkpoint"),
    ],
)
def test_a_wrong_use_is_one_line_and_exit_code_2(
    more: list[str], said: str, configs: Configs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "copy", str(configs["file"]), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_url_may_name_a_variable_of_the_environment(
    configs: Configs, settings: dict[str, dict[str, Any]], unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(configs["file"], unique)
    monkeypatch.setenv("STATE_URL", settings["postgres"]["url"])
    assert main(["checkpoint", "copy", str(configs["file"]), "--to", "postgres", "--url", "${STATE_URL}"]) == 0
    assert read(configs["postgres"], unique).checkpoints == CHECKPOINTS
