"""Owns the command line: arguments, exit codes, and that a mistake costs one line and not a traceback.

Exit codes: 0 done, 1 failed (no checkpoint has passed the failure), 2 wrong configuration or usage, 130 and 143
stopped by SIGINT and SIGTERM after a clean drain.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from producer import __version__
from producer.commands import COMMANDS
from producer.errors import ConfigError, ProducerError
from producer.lean import lean_process

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130
_THREADS_S = 1.0  # for threads that are about to end


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, not the whole usage: the way out stands at its end."""
        self.exit(EXIT_CONFIG, f"error: {message} (see {self.prog} --help)\n")


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser with every command, or only with those of the module that `argv` begins with, since
    importing them all takes time; each sets ``run`` to its function."""
    parser = _Parser(
        prog="producer", description="Streams tables, chats and HTTP tables into Kafka as Avro, losing nothing."
    )
    parser.add_argument("--version", action="version", version=f"producer {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an unexpected error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = COMMANDS.get(argv[0]) if argv else None
    for name in dict.fromkeys(COMMANDS.values()) if wanted is None else (wanted,):
        importlib.import_module(f"producer.commands.{name}").add_parser(subparsers)
    return parser


def command() -> NoReturn:
    """The process ``producer``: `main`, and an end also where a driver waits on a line that has gone silent."""
    code = main()
    until = time.monotonic() + _THREADS_S
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():  # the interpreter would wait for it for ever
                with contextlib.suppress(OSError):
                    sys.stdout.flush()
                os._exit(code)
    gc.freeze()  # all goes with the process: the interpreter's last look for garbage takes 0.3 s
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    lean_process()
    try:
        argv = sys.argv[1:] if argv is None else argv
        args = build_parser(argv).parse_args(argv)
    except KeyboardInterrupt:  # while the commands are imported
        return EXIT_INTERRUPTED
    try:
        return int(args.run(args))
    except ConfigError as error:
        return _tell(args, error, EXIT_CONFIG)
    except ProducerError as error:
        return _tell(args, error, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: no complaint at exit either
        return EXIT_FAILED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        # The text of an unexpected error may hold anything, passwords included: only its kind and place are shown.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        sys.stderr.write(
            f"error: unexpected {type(error).__name__} at {where} (for details: producer --debug {args.command} ...)\n"
        )
        return EXIT_FAILED


def _tell(args: argparse.Namespace, error: ProducerError, code: int) -> int:
    redact = getattr(args, "redact", str)
    sys.stderr.write(f"error: {redact(' '.join(str(error).split()))}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
