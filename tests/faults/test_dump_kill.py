"""A dump that is killed at any moment goes on to the same files: every format, both traversals, 30 kills each."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from producer.dump import DumpConfig
from tests.dump import SCHEMA_FILE, expected, portal, read_back
from tests.jsonsql.server import JsonSqlServer

KILLS = 30
CHUNK_ROWS = 50  # of the table's 1000
LATENCY_S = 0.002
FORMATS = ("jsonl", "csv", "parquet", "json", "avro")

#: The dump in a process that is forked after everything slow has been imported: a kill then meets the dump's own work.
_RUNNER = """
import asyncio, os, sys
import httpx, h2, orjson, numpy, pyarrow.compute, pyarrow.csv, pyarrow.parquet, yaml
from producer.dump import DumpConfig, DumpService
from producer.sources.iptvportal import AsyncIPTVPortalClient
import producer.encoding.arrow_avro, producer.encoding.schema, producer.sinks.formats

async def dump(config):
    async with AsyncIPTVPortalClient() as client:
        await DumpService(client).dump(config)

for line in sys.stdin:
    if (child := os.fork()) == 0:
        asyncio.run(dump(eval(line, {"DumpConfig": DumpConfig})))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JsonSqlServer]:
    with portal(tmp_path_factory.mktemp("portal"), latency_s=LATENCY_S) as server:
        yield server


class Runner:
    """Dumps in processes of their own, which can be killed."""

    def __init__(self, url: str) -> None:
        secrets = {"IPTVPORTAL_URL": url, "IPTVPORTAL_USERNAME": "user", "IPTVPORTAL_PASSWORD": "secret"}
        self._parent = subprocess.Popen(
            [sys.executable, "-c", _RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **secrets, "IPTVPORTAL_SCHEMA_FILE": str(SCHEMA_FILE)},
        )

    def run(self, options: str, kill: Callable[[], object] | None = None) -> int:
        """The wait status of a dump, which is killed when `kill` returns."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(options + "\n")
        self._parent.stdin.flush()
        child = int(self._parent.stdout.readline())
        if kill is not None:
            kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return int(self._parent.stdout.readline())

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(30)
        assert self._parent.stdout is not None
        self._parent.stdout.close()


@pytest.fixture(scope="module")
def runner(server: JsonSqlServer) -> Iterator[Runner]:
    runner = Runner(server.url)
    yield runner
    runner.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("form", "strategy", "compress"),
    [
        *((form, ("offset", "id_range")[number % 2], False) for number, form in enumerate(FORMATS)),
        ("jsonl", "offset", True),
        ("jsonl", "id_range", True),
        ("json", "offset", True),
        ("avro", "id_range", True),
    ],
)
def test_thirty_kills_leave_the_files_of_an_uninterrupted_dump(
    runner: Runner, tmp_path: Path, form: str, strategy: str, compress: bool
) -> None:
    def options(folder: Path) -> str:
        return (
            f"DumpConfig(table='terminal', output_dir={str(folder)!r}, format={form!r}, strategy={strategy!r}, "
            f"compress={compress}, chunk_size={CHUNK_ROWS})"
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert runner.run(options(whole)) == 0
    config = DumpConfig(table="terminal", output_dir=broken, format=form, strategy=strategy)
    moments, kills, resumed = random.Random(f"{form}{strategy}{compress}"), 0, 0
    while kills < KILLS:
        moment = random_moment(config, moments, anywhere=kills % 3 == 0)
        status = runner.run(options(broken), moment)
        if status == signal.SIGKILL:
            kills += 1
            resumed += config.state_path.exists()
        else:
            assert status == 0
        if config.state_path.exists() and json.loads(config.state_path.read_text())["is_complete"]:
            check(broken, whole, in_order=strategy == "offset")
            for path in broken.iterdir():
                path.unlink()
    assert runner.run(options(broken)) == 0
    assert resumed > KILLS / 3
    check(broken, whole, in_order=strategy == "offset")


def random_moment(config: DumpConfig, moments: random.Random, *, anywhere: bool) -> Callable[[], object]:
    """Waits for some moment of the run: soon after its start, or about when one of its next chunks is written."""
    target = _dumped_rows(config) + CHUNK_ROWS * moments.randint(1, 5)

    def wait() -> None:
        deadline = time.monotonic() + 10
        while not anywhere and _dumped_rows(config) < min(target, 1000) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.1 if anywhere else 0.01))

    return wait


def _dumped_rows(config: DumpConfig) -> int:
    try:
        return int(json.loads(config.state_path.read_text())["dumped_rows"])
    except FileNotFoundError:
        return 0


def check(broken: Path, whole: Path, *, in_order: bool) -> None:
    """The same bytes where one split is read in order, the same rows where several are read side by side."""
    if in_order:
        assert contents(broken) == contents(whole)
    rows = read_back([broken / name for name in contents(broken)])
    wanted = read_back([whole / name for name in contents(whole)])
    assert len(rows) == len(expected("terminal"))
    assert sorted(map(repr, rows)) == sorted(map(repr, wanted))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a dump, without its state."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
