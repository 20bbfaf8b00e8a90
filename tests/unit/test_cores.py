"""How many cores the process may use: what it is bound to, and the quotas of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from producer import service
from producer.cores import cores

BOUND = len(os.sched_getaffinity(0))


def groups(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A control group filesystem with these files, and a process's membership file."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "membership").write_text(membership)
    return folder / "cgroup", folder / "membership"


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        pytest.param("0::/\n", {"cpu.max": "40000 100000\n"}, id="version 2, a container's own group"),
        pytest.param("0::/kubepods/pod7\n", {"kubepods/pod7/cpu.max": "100000 100000\n"}, id="version 2, a path"),
        pytest.param(
            "0::/kubepods/pod7/c\n",
            {"kubepods/pod7/c/cpu.max": "max 100000\n", "kubepods/pod7/cpu.max": "50000 100000\n"},
            id="version 2, the quota is the pod's",
        ),
        pytest.param(
            "5:memory:/a\n4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "8000\n", "cpu/a/cpu.cfs_period_us": "20000\n"},
            id="version 1",
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/of-the-host\n",
            {"cpu/cpu.cfs_quota_us": "90000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            id="version 1, a path that is only the host's",
        ),
    ],
)
def test_a_quota_bounds_the_cores(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    assert cores(*groups(tmp_path, membership, files)) == 1


def test_a_quota_is_rounded_up(tmp_path: Path) -> None:
    assert cores(*groups(tmp_path, "0::/\n", {"cpu.max": "120000 100000\n"})) == min(2, BOUND)


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, id="version 2"),
        pytest.param(
            "4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, id="version 1"
        ),
        pytest.param("3:memory:/x\n", {"cpu.max": "1 100000\n"}, id="of another resource"),
        pytest.param("", {}, id="none"),
    ],
)
def test_without_a_quota_all_cores_are_there(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    assert cores(*groups(tmp_path, membership, files)) == BOUND


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert cores(tmp_path / "none", tmp_path / "none") == BOUND


@pytest.mark.parametrize(("there", "threads"), [(1, 1), (2, 1), (4, 3), (64, 8)])
def test_one_core_is_left_to_those_who_do_not_encode(monkeypatch: pytest.MonkeyPatch, there: int, threads: int) -> None:
    monkeypatch.setattr(service, "cores", lambda: there)
    assert service.encoder_threads() == threads
