"""`producer dump` as a process: sources, exit codes, Ctrl-C, a full disk, and what each line says."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dump import SCHEMA_FILE, expected, portal, read_back
from tests.jsonsql.server import JsonSqlServer

TIMEOUT_S = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JsonSqlServer]:
    with portal(tmp_path) as server:
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


def start(server: JsonSqlServer, out: Path, *args: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "producer", "dump", *args, "--output-dir", str(out)]
    if "--source" not in args and "--config" not in args:
        command += ["--source", server.url]
    env = {
        **os.environ,
        "IPTVPORTAL_USERNAME": "user",
        "IPTVPORTAL_PASSWORD": "secret",
        "IPTVPORTAL_SCHEMA_FILE": str(SCHEMA_FILE),
        **more.pop("env", {}),
    }
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **more)


def dump(server: JsonSqlServer, out: Path, *args: str, **more: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = start(server, out, *args, **more)
    printed, told = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, printed, told


def test_several_tables_are_dumped_with_a_summary_of_each(server: JsonSqlServer, out: Path) -> None:
    code, printed, told = dump(server, out, "tv_channel", "media", "--strategy", "id_range", "--json")
    assert (code, told) == (0, "")
    summaries = [json.loads(line) for line in printed.splitlines()]
    assert [(s["table"], s["state"], s["rows"], s["error"]) for s in summaries] == [
        ("tv_channel", "complete", 60, None),
        ("media", "complete", 300, None),
    ]
    rows = read_back([Path(f) for f in summaries[0]["files"]])
    assert sorted(rows, key=lambda row: int(row["id"])) == expected("tv_channel")


def test_a_condition_and_columns_are_taken_from_the_arguments(server: JsonSqlServer, out: Path) -> None:
    where = '{"and": [{"eq": ["disabled", false]}, {"gte": ["balance", 10]}]}'
    code, _, told = dump(server, out, "subscriber", "--where", where, "--columns", "id,balance", "--format", "csv")
    assert code == 0, told
    assert "subscriber: complete, 46 rows" in told
    assert read_back([out / "subscriber.csv"])[0] == {"id": "10", "balance": "10"}


def test_a_sql_database_is_dumped_by_its_url(server: JsonSqlServer, out: Path) -> None:
    url = f"sqlite:///{server.settings.database}"
    for form in ("jsonl", "csv", "parquet", "json", "avro"):
        code, _, told = dump(server, out / form, "media", "--source", url, "--format", form, "--strategy", "id_range")
        assert code == 0, told
        (path,) = (p for p in (out / form).iterdir() if not p.name.startswith("."))
        assert sorted(int(row["id"]) for row in read_back([path])) == [row["id"] for row in expected("media")]


def test_a_source_of_a_configuration_is_dumped_by_its_name(server: JsonSqlServer, out: Path, tmp_path: Path) -> None:
    config = tmp_path / "p.yaml"
    config.write_text(
        f"sources:\n  portal: {{type: iptvportal, url: '{server.url}', username: user, password: '${{SECRET}}'}}\n"
        f"  other: {{type: sql, url: 'sqlite:///x.db'}}\nstreams: [{{source: portal, table: terminal}}]\n"
    )
    env = {"SECRET": "secret"}
    code, _, told = dump(server, out, "tv_channel", "--config", str(config), "--source", "portal", env=env)
    assert code == 0, told
    assert [row["field_0"] for row in read_back([out / "tv_channel.jsonl"])] == list(range(1, 61))
    code, _, told = dump(server, out, "tv_channel", "--config", str(config), env=env)
    assert (code, told.count("\n")) == (2, 1)
    assert "--source one of portal, other" in told


def test_ctrl_c_pauses_and_the_same_command_goes_on(server: JsonSqlServer, out: Path) -> None:
    server.settings.latency_s = 0.02
    process = start(server, out, "terminal", "--chunk-size", "10")
    state = out / ".terminal.state.json"
    while not state.exists() or json.loads(state.read_text())["dumped_rows"] == 0:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert re.fullmatch(r"terminal: paused after \d+ rows; the same command goes on from there\n", told), told
    server.settings.latency_s = 0.0
    code, _, told = dump(server, out, "terminal", "--chunk-size", "10")
    assert code == 0, told
    assert [row["id"] for row in read_back([out / "terminal.jsonl"])] == [row["id"] for row in expected("terminal")]


def test_debug_shows_the_timing_of_each_request_and_no_password(server: JsonSqlServer, out: Path) -> None:
    code, _, told = dump(server, out, "tv_channel", "--debug", env={"IPTVPORTAL_PASSWORD": "secret"})
    assert code == 0
    assert len(re.findall(r"/api/jsonsql/ HTTP/1.1: 200, \d+ bytes in \d+\.\d ms", told)) >= 2
    assert "secret" not in told


def test_wrong_credentials_are_one_line_and_exit_code_1(server: JsonSqlServer, out: Path) -> None:
    code, _, told = dump(server, out, "tv_channel", env={"IPTVPORTAL_PASSWORD": "not-the-password"})
    assert code == 1
    assert told.startswith("error: iptvportal:")
    assert told.count("\n") == 1
    assert "not-the-password" not in told


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["tv_channel", "--format", "xml"], "invalid choice: 'xml'"),
        (["tv_channel", "--chunk-size", "0"], "chunk_size must be a number from 1"),
        (["tv_channel", "--where", "{"], "--where is not JSON"),
        (["tv_channel", "--source", "nonsense"], "neither a URL nor 'iptvportal'"),
        (["tv_channel", "--schema-file", "none.yaml"], "none.yaml: No such file"),
        (["subscriber", "--where", '{"eq": ["balnce", 1]}'], "did you mean 'balance'"),
        ([], "the following arguments are required: TABLE"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    server: JsonSqlServer, out: Path, args: list[str], text: str
) -> None:
    code, _, told = dump(server, out, *args)
    assert (code, told.count("\n")) == (2, 1), told
    assert text in told


def test_without_a_source_the_ways_to_name_one_are_told(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("IPTVPORTAL_")}
    command = [sys.executable, "-m", "producer", "dump", "events", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: no source is named (--source URL, such as postgresql://..., or --config FILE;"
    )


def test_a_parquet_file_has_as_many_rows_as_a_chunk(server: JsonSqlServer, out: Path) -> None:
    import pyarrow.parquet as pq

    url = f"sqlite:///{server.settings.database}"
    for rows, files in ((100, 3), (1000, 1)):
        folder = out / str(rows)
        code, _, told = dump(server, folder, "media", "--source", url, "--format", "parquet", "--chunk-size", str(rows))
        assert code == 0, told
        found = [pq.read_metadata(folder / f"media-{number:05}.parquet") for number in range(files)]
        assert [(f.num_rows, f.num_row_groups) for f in found] == [(300 // files, 1)] * files


@pytest.mark.parametrize("form", ["jsonl", "avro", "parquet"])
def test_a_full_disk_keeps_the_state_and_the_dump_goes_on_when_there_is_room(
    server: JsonSqlServer, out: Path, form: str
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    wide = sqlite3.connect(server.settings.database)
    with wide:
        wide.execute("CREATE TABLE wide (id INTEGER PRIMARY KEY, v TEXT)")
        wide.executemany("INSERT INTO wide VALUES (?, ?)", [(i, os.urandom(40 * i).hex()) for i in range(1, 101)])
    wide.close()
    args = ("wide", "--format", form, "--chunk-size", "10")
    code, _, told = dump(server, out, *args, preexec_fn=limit)
    assert code == 1, told
    assert "cannot be written: File too large" in told
    assert told.count("\n") == 1
    rows = json.loads((out / ".wide.state.json").read_text())["dumped_rows"]
    assert rows < 100
    code, _, told = dump(server, out, *args)
    assert code == 0, told
    names = sorted(path for path in out.iterdir() if not path.name.startswith("."))
    assert [row["field_0"] for row in read_back(names)] == list(range(1, 101))
