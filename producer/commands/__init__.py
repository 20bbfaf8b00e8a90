"""Owns the table of commands: each is in a module here with ``add_parser(subparsers)`` and ``run(args) -> int``.

The modules import little at their top, since all of them are imported for ``--help``; what is heavy is imported when
a command runs.
"""

from __future__ import annotations

#: The module of each command, in the order of ``--help``.
COMMANDS: dict[str, str] = {
    "run": "run",
    "validate": "validate",
    "plan": "plan",
    "status": "status",
    "pause": "control",
    "resume": "control",
    "replay": "control",
    "verify": "verify",
    "checkpoint": "checkpoint",
    "dead-letters": "dead_letters",
    "schema": "schema",
    "import": "import_config",
    "dump": "dump",
    "demo": "demo",
    "telegram": "telegram",
}
