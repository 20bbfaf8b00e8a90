"""Owns ``producer import``: other programs' configurations as ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from producer.commands import options


def add_parser(subparsers: Any) -> None:
    text = "turn another program's configuration into ours"
    actions = subparsers.add_parser("import", help=text, description=text).add_subparsers(
        dest="action", metavar="ACTION", required=True
    )
    text = "a kafka-connect-jdbc or Debezium connector's"
    parser = actions.add_parser(
        "connect-config",
        help=text,
        description="Print our configuration for a kafka-connect-jdbc source connector or a Debezium connector (of "
        "PostgreSQL, MySQL, MariaDB). Comments say what is different; passwords become environment variables.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="its JSON, or its properties")
    options.add_debug(parser)
    parser.set_defaults(run=_connect_config)


def _connect_config(args: argparse.Namespace) -> int:
    from producer.importing.connect import convert
    from producer.importing.settings import read_settings

    sys.stdout.write(convert(read_settings(args.file)))
    return 0
