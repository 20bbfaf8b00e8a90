"""Owns the table of commands: each is a module here with ``add_parser(subparsers)`` and ``run(args) -> int``.

The modules import little at their top, since all of them are imported for ``--help``; what is heavy is imported when
a command runs.
"""

from __future__ import annotations

COMMANDS: tuple[str, ...] = (
    "run",
    "validate",
    "plan",
    "status",
    "control",
    "verify",
    "checkpoint",
    "dead_letters",
    "schema",
    "import_config",
    "dump",
    "demo",
    "telegram",
)
