"""Owns the schema registry: Apicurio with its Confluent-compatible interface, in memory."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from producer.embedded import cache_dir, fetch_artifact, find_java, free_port, only_one
from tests.services.process import Process, owned_folder

_VERSION = "2.6.13.Final"
_SHA256 = "3cda1b34aa020fb4ac4dd6a66018d757e81e437f97e20a1f92d366b70091c6ba"


def unpacked() -> Path:
    """The folder with the server's jars; fetched (142 MB, once) where it is not there yet."""
    folder = cache_dir() / f"apicurio-{_VERSION}"
    if not folder.is_dir():
        with only_one(cache_dir()), tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            if not folder.is_dir():
                coordinates = f"io.apicurio:apicurio-registry-app:{_VERSION}"
                archive = fetch_artifact(Path(scratch), _SHA256, coordinates, "all", "tar.gz")
                whole = Path(scratch, "whole")
                with tarfile.open(archive) as tar:
                    tar.extractall(whole, filter="data")
                whole.rename(folder)
    return folder


class Registry:
    """A registry of its own; its compatibility is BACKWARD, as Confluent's is by default."""

    def __init__(self) -> None:
        self._folder = owned_folder("registry-", None)
        self._port = free_port()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/apis/ccompat/v7"

    def start(self) -> None:
        home = unpacked()
        (jar,) = home.glob("*-runner.jar")
        self._process = Process(
            [
                str(find_java()),
                "-Xmx256m",
                "-XX:TieredStopAtLevel=1",
                "-XX:+UseSerialGC",
                "-Dquarkus.http.host=127.0.0.1",
                f"-Dquarkus.http.port={self._port}",
                f"-Djava.io.tmpdir={self._folder}",
                "-jar",
                str(jar),
            ],
            log=self._folder / "server.log",
            cwd=home,
        )
        self._process.wait_ready(self._takes_settings)

    def _takes_settings(self) -> bool:
        request = urllib.request.Request(
            f"{self.url}/config",
            method="PUT",
            data=json.dumps({"compatibility": "BACKWARD"}).encode(),
            headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        if self._process:
            self._process.stop()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
