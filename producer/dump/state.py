"""The state file of a dump, ``.{table}.state.json``: what it says, and that it is whole after any crash."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from producer.dump.config import DumpConfig
from producer.errors import CheckpointConflictError, CheckpointCorruptError, ConfigError, SinkUnavailableError
from producer.model import Checkpoint, checkpoint_from_json, checkpoint_to_json
from producer.sinks.files import FileMark

Json = Any
_RESET = "start over with resume=False (--no-resume), or reset the dump"


@dataclass(frozen=True, slots=True)
class Kept:
    """The part of the state by which a dump is continued exactly: the files' mark and each split's checkpoint.

    ``first_row``: how many rows of the table are before the first one in the files (OFFSET). ``types``: those of
    columns that the source has inferred. ``replacing``: the mark is that of a new file that takes the old one's place.
    """

    format: str
    compress: bool
    chunked: bool
    fingerprint: str
    resume_offset: int
    mark: FileMark
    checkpoints: tuple[Checkpoint, ...]
    first_row: int = 0
    types: Mapping[str, str] = field(default_factory=dict)
    replacing: bool = False


@dataclass(frozen=True, slots=True)
class SavedDump:
    """A state file. ``exact`` is None in a file that has the documented keys only."""

    table: str
    dumped_rows: int
    current_offset: int
    chunks_completed: int
    started_at: dt.datetime
    last_updated_at: dt.datetime
    is_complete: bool
    exact: Kept | None


def load(config: DumpConfig) -> SavedDump | None:
    """The dump's state, None where there is none. CheckpointCorruptError for one that cannot be read,
    CheckpointConflictError for another table's."""
    path = config.state_path
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CheckpointCorruptError(f"{path} is not JSON", hint=_RESET) from None
    try:
        saved = _from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointCorruptError(f"{path} is not the state of a dump", hint=_RESET) from None
    if saved.table != config.table:
        raise CheckpointConflictError(
            f"{path} is the state of table {saved.table}, not of {config.table}", hint="use another output_dir"
        )
    return saved


def save(config: DumpConfig, saved: SavedDump) -> None:
    """Replaces the state file, atomically and durably."""
    path = config.state_path
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(_to_json(saved), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SinkUnavailableError(f"{path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def locked(config: DumpConfig) -> Iterator[None]:
    """Holds the dump for this process; CheckpointConflictError while another one does. It ends with its holder, and
    leaves no file behind."""
    path = config.output_dir / f".{config.name}.lock"
    try:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    except OSError as error:
        raise ConfigError(f"output_dir {config.output_dir} cannot be written: {error.strerror}") from None
    if file is None:
        raise CheckpointConflictError(
            f"table {config.table} is being dumped to {config.output_dir} already", hint="wait for it, or stop it"
        )
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked, so that nobody holds a file that is gone


def _lock(path: Path) -> IO[bytes] | None:
    """The file, locked; None where another process holds it."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder has removed it meanwhile


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _to_json(saved: SavedDump) -> Json:
    out: dict[str, Json] = {
        "table": saved.table,
        "dumped_rows": saved.dumped_rows,
        "current_offset": saved.current_offset,
        "chunks_completed": saved.chunks_completed,
        "started_at": saved.started_at.isoformat(),
        "last_updated_at": saved.last_updated_at.isoformat(),
        "is_complete": saved.is_complete,
    }
    if (exact := saved.exact) is not None:
        out |= {
            "version": 1,
            "format": exact.format,
            "compress": exact.compress,
            "fingerprint": exact.fingerprint,
            "resume_offset": exact.resume_offset,
            "output": {"chunked": exact.chunked, "files": exact.mark.files, "length": exact.mark.length},
            "first_row": exact.first_row,
            "types": dict(exact.types),
            "replacing": exact.replacing,
            "splits": [checkpoint_to_json(c) for c in exact.checkpoints],
        }
    return out


def _from_json(value: Mapping[str, Json]) -> SavedDump:
    exact = None
    if "splits" in value:
        if value["version"] != 1:
            raise ValueError("unknown version")
        output = value["output"]
        exact = Kept(
            format=str(value["format"]),
            compress=bool(value["compress"]),
            chunked=bool(output["chunked"]),
            fingerprint=str(value["fingerprint"]),
            resume_offset=int(value["resume_offset"]),
            mark=FileMark(int(output["files"]), int(output["length"])),
            checkpoints=tuple(checkpoint_from_json(c) for c in value["splits"]),
            first_row=int(value.get("first_row", 0)),
            types={str(name): str(kind) for name, kind in value.get("types", {}).items()},
            replacing=bool(value.get("replacing", False)),
        )
    return SavedDump(
        table=str(value["table"]),
        dumped_rows=int(value["dumped_rows"]),
        current_offset=int(value["current_offset"]),
        chunks_completed=int(value["chunks_completed"]),
        started_at=dt.datetime.fromisoformat(value["started_at"]),
        last_updated_at=dt.datetime.fromisoformat(value["last_updated_at"]),
        is_complete=bool(value["is_complete"]),
        exact=exact,
    )
