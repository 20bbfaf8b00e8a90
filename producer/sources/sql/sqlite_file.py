"""Which file is at a path: its number on the disk, and when it was made, because a new file gets a free number."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_BIRTH = 0x800  # STATX_BTIME
_AT_CWD = -100
_MASK, _SECONDS, _NANOSECONDS = 0, 80, 88  # places in struct statx, which is the same on every machine


def file_number(path: Path) -> str:
    """The same for a file that was moved or written to, and another one for each file; '' where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    made = getattr(found, "st_birthtime_ns", None) or getattr(found, "st_birthtime", None) or _birth(path)
    return f"{found.st_dev}:{found.st_ino}" + (f":{made}" if made else "")


def _birth(path: Path) -> str:
    """Of Linux, whose `os.stat` does not tell it. '' where the C library or the file system does not know. The file is
    not opened: to close it would end SQLite's locks."""
    statx = getattr(_LIBRARY, "statx", None)
    found = ctypes.create_string_buffer(256)
    if statx is None or statx(_AT_CWD, os.fsencode(path), 0, _BIRTH, found):
        return ""
    if not struct.unpack_from("=I", found, _MASK)[0] & _BIRTH:
        return ""
    return f"{struct.unpack_from('=q', found, _SECONDS)[0]}.{struct.unpack_from('=I', found, _NANOSECONDS)[0]:09d}"


_LIBRARY = ctypes.CDLL(None)
