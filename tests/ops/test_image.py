"""The image, as far as a machine without a container engine can tell: linters, and the build stage's own steps, run.

The base image, its apt-get, the users and the layers are not built here (`make test-image` does); `python` is this
machine's.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest
from packaging.requirements import Requirement

from producer.embedded import free_port
from tests.faults.killing import write_config
from tests.ops.dockerfile import DOCKERFILE, instructions, only

ROOT = DOCKERFILE.parent
PIP_SETTINGS_OF_THE_IMAGE = {"PIP_NO_CACHE_DIR"}  # here what was downloaded is kept


def test_the_dockerfile_linter_finds_nothing(hadolint: str) -> None:
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_security_linter_finds_nothing(trivy: str) -> None:
    done = subprocess.run(
        [trivy, "config", "--quiet", "--skip-check-update", "--format", "json", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["Results"]
    assert result["MisconfSummary"]["Successes"] > 20
    assert result.get("Misconfigurations", []) == []


def test_it_runs_as_nobody_in_particular_and_gets_signals_itself() -> None:
    assert only("USER", 1).text == "10001:10001"
    assert only("ENTRYPOINT", 1).words() == ["producer"]
    assert only("STOPSIGNAL", 1).text == "SIGTERM"


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_everything_is_pinned_by_hash_and_no_index_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ")) if not entry.startswith(("#", " "))]
    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,]+\])?==[\w.!+]+ .*--hash=sha256:[0-9a-f]{64}", entry, re.DOTALL), entry[:80]
    assert "://" not in text
    assert "--index" not in text


def pinned(name: str) -> dict[str, set[str]]:
    """The versions of each distribution in a lock file; more than one where they differ by platform or Python."""
    found: dict[str, set[str]] = {}
    for distribution, version in re.findall(
        r"^([\w.-]+)(?:\[[\w,]+\])?==([\w.!+]+)", (ROOT / name).read_text(), re.MULTILINE
    ):
        found.setdefault(normalized(distribution), set()).add(version)
    return found


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("requirements.txt", ("mysql", "duckdb", "otel")),
        ("requirements-dev.txt", ("dev", "docs", "test", "bench", "otel")),
    ],
)
def test_what_is_pinned_is_what_the_package_asks_for(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(each for extra in extras for each in optional[extra])]
    locked = pinned(name)
    for requirement in map(Requirement, wanted):
        if normalized(requirement.name) != project["name"]:
            versions = locked[normalized(requirement.name)]
            assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), requirement


def test_the_lock_is_made_of_the_extras_that_the_image_is_to_have() -> None:
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.endswith("-o requirements.txt")]
    assert set(re.findall(r"--extra (\S+)", line)) == {"mysql", "duckdb", "otel"}


def test_what_is_tested_is_what_is_shipped() -> None:
    shipped, tested = pinned("requirements.txt"), pinned("requirements-dev.txt")
    assert {name: versions for name, versions in shipped.items() if tested.get(name) != versions} == {}


def copied() -> list[tuple[list[str], str]]:
    """Sources and destination of each COPY from the checkout."""
    words = [each.text.split() for each in instructions() if (each.name, each.stage) == ("COPY", 0)]
    return [(found[:-1], found[-1]) for found in words]


def test_what_is_copied_is_there_and_is_not_ignored() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            last = [rule for rule in rules if fnmatch.fnmatch(source, rule.removeprefix("!"))][-1]
            assert last.startswith("!"), source


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What /opt/producer is after the steps of the build stage, from the lock files and the sources alone."""
    root = tmp_path_factory.mktemp("image")
    source = root / "src"
    source.mkdir()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    for each in instructions():
        if each.stage != 0:
            continue
        if each.name == "ENV":
            pairs = dict(pair.split("=") for pair in each.text.split())
            environment |= {name: value for name, value in pairs.items() if name not in PIP_SETTINGS_OF_THE_IMAGE}
        elif each.name == "COPY":
            *names, target = each.text.split()
            for name in names:
                if (ROOT / name).is_dir():
                    ignored = shutil.ignore_patterns("*.so", "__pycache__")
                    shutil.copytree(ROOT / name, source / target, ignore=ignored)
                else:
                    shutil.copy(ROOT / name, source / target)
        elif each.name == "RUN" and "apt-get" not in each.text:
            command = each.text.replace("/opt/", f"{root}/opt/").replace("/dist", f"{root}/dist")
            done = subprocess.run(
                ["sh", "-ec", command], cwd=source, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return root / "opt" / "producer"


@pytest.mark.timeout(600)
def test_the_build_stage_makes_a_program_that_runs(built: Path) -> None:
    done = subprocess.run([built / "bin/producer", "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("producer ")
    kernel = "import producer.encoding._kernel as k; print(k.__file__)"
    done = subprocess.run([built / "bin/python", "-I", "-c", kernel], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(built))


@pytest.mark.timeout(600)
def test_it_can_trace(built: Path) -> None:
    program = "from producer.tracing import tracing\nwith tracing('shop', enabled=True): pass"
    subprocess.run([built / "bin/python", "-I", "-c", program], check=True, timeout=60)


@pytest.mark.timeout(600)
def test_no_byte_code_knows_when_it_was_made(built: Path) -> None:
    """The same input is the same image: each file's flags say that it was made from a hash, and not to look again."""
    flags = {path.read_bytes()[4:8] for path in built.glob("lib/**/*.pyc")}
    assert flags == {b"\1\0\0\0"}


@pytest.mark.timeout(600)
def test_the_list_of_contents_names_every_distribution_with_its_version(built: Path) -> None:
    listed = json.loads((built / "sbom.cdx.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    named = {(normalized(part["name"]), part["version"]) for part in listed["components"]}
    own = listed["metadata"]["component"]
    named.add((normalized(own["name"]), own["version"]))
    installed = set()
    for metadata in built.glob("lib/*/site-packages/*.dist-info/METADATA"):
        head = metadata.read_text(errors="replace").split("\n\n", 1)[0]
        fields = dict(re.findall(r"^(Name|Version): (.+)$", head, re.MULTILINE))
        installed.add((normalized(fields["Name"]), fields["Version"]))
    assert named == installed
    assert {"aiokafka", "pyarrow", "streaming-producer"} <= {name for name, _ in installed}
    assert {name for name, _ in installed}.isdisjoint({"pip", "setuptools", "pytest"})


def config_of(folder: Path, bootstrap: str, port: int) -> Path:
    with sqlite3.connect(folder / "shop.db") as table:
        table.execute("CREATE TABLE events (id INTEGER PRIMARY KEY)")
        table.executemany("INSERT INTO events VALUES (?)", ((number,) for number in range(1000)))
    table.close()
    config: dict[str, Any] = {
        "app": f"image_{port}",
        "kafka": {"bootstrap_servers": bootstrap},
        "checkpoints": {"type": "file", "path": str(folder / "state")},
        "http": {"port": port},
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{folder / 'shop.db'}"}},
        "streams": [
            {"source": "shop", "table": "events", "topic": f"image_{port}.events", "mode": "snapshot_then_tail"}
        ],
    }
    return write_config(folder, config)


def is_healthy(built: Path, port: int) -> bool:
    """What the HEALTHCHECK's command says."""
    python, *arguments = only("HEALTHCHECK", 1).words()
    done = subprocess.run(
        [built / "bin" / python, *arguments],
        env={**os.environ, "HTTP_PORT": str(port)},
        capture_output=True,
        check=False,
        timeout=30,
    )
    return done.returncode == 0


@pytest.mark.timeout(600)
def test_as_process_1_it_is_healthy_and_a_signal_drains_it(built: Path, kafka_bootstrap: str, tmp_path: Path) -> None:
    """In a process namespace of its own, where a signal that nobody handles is ignored."""
    port = free_port()
    assert not is_healthy(built, port)
    config = config_of(tmp_path, kafka_bootstrap, port)
    own = ["--user", "--map-root-user"] if os.geteuid() != 0 else []
    outer = subprocess.Popen(
        ["unshare", *own, "--pid", "--fork", "--kill-child", built / "bin/producer", "run", config],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not is_healthy(built, port):
            assert outer.poll() is None, outer.communicate()[1]
            assert time.monotonic() < deadline
        (process,) = psutil.Process(outer.pid).children()
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE)
        process.send_signal(signal.SIGTERM)
        _, err = outer.communicate(timeout=60)
    finally:
        outer.kill()
        outer.wait()
    assert outer.returncode == 128 + signal.SIGTERM, err
    assert "draining" in err
