"""Owns the database servers and Redis: PostgreSQL (with logical decoding), MariaDB, Redis."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess

import pymysql

from producer.embedded import free_port
from tests.services.process import Process, account, owned_folder, program

_HOST = "127.0.0.1"
_POSTGRES_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")


def missing() -> dict[str, str]:
    """For each service whose program is not on this machine: the Debian package that has it."""
    return {
        name: package
        for name, found, package in (
            ("postgres", program("initdb", *_POSTGRES_PLACES), "postgresql"),
            ("mariadb", program("mariadb-install-db") and program("mariadbd"), "mariadb-server"),
            ("redis", program("redis-server"), "redis-server"),
        )
        if not found
    }


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), timeout=1):
            return True
    except OSError:
        return False


class Postgres:
    """A cluster of its own; trust authentication for the superuser `postgres`."""

    def __init__(self, *settings: str) -> None:
        self._settings = settings
        self._user = account("postgres")
        self._folder = owned_folder("postgres-", self._user)
        self._port = free_port()
        self._process: Process | None = None
        subprocess.run(
            [
                self._program("initdb"),
                *("-D", str(self._folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"),
                *("--locale", "C.UTF-8", "--no-instructions"),
            ],
            check=True,
            capture_output=True,
            timeout=120,
            cwd=self._folder,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
        )

    @staticmethod
    def _program(name: str) -> str:
        found = program(name, *_POSTGRES_PLACES)
        assert found is not None
        return found

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@{_HOST}:{self._port}/{database}"

    def start(self) -> None:
        settings = (
            "wal_level=logical",
            "max_connections=200",
            "fsync=off",  # a crash of the server is tested, one of the machine is not
            "max_wal_senders=10",
            "timezone=UTC",
            *self._settings,
        )
        self._process = Process(
            [
                self._program("postgres"),
                *("-D", str(self._folder / "data"), "-p", str(self._port), "-h", _HOST, "-k", str(self._folder)),
                *(argument for setting in settings for argument in ("-c", setting)),
            ],
            log=self._folder / "server.log",
            cwd=self._folder,
            user=self._user,
        )
        ready = [self._program("pg_isready"), "-q", "-h", _HOST, "-p", str(self._port)]
        self._process.wait_ready(lambda: subprocess.run(ready, check=False, timeout=10).returncode == 0)

    def stop(self) -> None:
        """Breaks off all sessions and ends in order."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends at once, as after a crash: the next start recovers from the log."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        if self._process:
            self._process.stop(number)
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class MariaDB:
    """A server of its own, with the account ``p`` (password ``p``) that may do everything."""

    def __init__(self) -> None:
        self._user = account("mysql")
        self._folder = owned_folder("mariadb-", self._user)
        self._port = free_port()
        self._process: Process | None = None
        installer, self._server = program("mariadb-install-db"), program("mariadbd")
        assert installer is not None
        assert self._server is not None
        as_user = [f"--user={self._user}"] if self._user else []
        # A server that starts removes the temporary tables it finds, in a shared folder those of others as well.
        self._options = ["--no-defaults", *as_user, f"--datadir={self._folder / 'data'}", f"--tmpdir={self._folder}"]
        made = subprocess.run(
            [installer, *self._options, "--skip-test-db", "--skip-name-resolve"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
            cwd=self._folder,
        )
        assert made.returncode == 0, made.stdout

    def url(self, database: str = "") -> str:
        return f"mysql://p:p@{_HOST}:{self._port}/{database}"

    @property
    def port(self) -> int:
        return self._port

    def start(self) -> None:
        accounts = self._folder / "accounts.sql"
        accounts.write_text(  # one statement a line
            "CREATE USER IF NOT EXISTS 'p'@'%' IDENTIFIED BY 'p';\nGRANT ALL ON *.* TO 'p'@'%' WITH GRANT OPTION;\n"
        )
        accounts.chmod(0o644)
        self._process = Process(
            [
                str(self._server),
                *self._options,
                f"--init-file={accounts}",
                f"--port={self._port}",
                f"--bind-address={_HOST}",
                f"--socket={self._folder / 'server.sock'}",
                f"--pid-file={self._folder / 'server.pid'}",
                "--skip-name-resolve",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-buffer-pool-size=64M",
                "--character-set-server=utf8mb4",
                "--default-time-zone=+00:00",
            ],
            log=self._folder / "server.log",
            cwd=self._folder,
        )
        self._process.wait_ready(self._lets_in)

    def _lets_in(self) -> bool:
        """The port is open a moment before the account is there."""
        try:
            pymysql.connect(host=_HOST, port=self._port, user="p", password="p", connect_timeout=2).close()
        except pymysql.Error:
            return False
        return True

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process:
            self._process.stop(number)
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class Redis:
    """A server of its own that keeps nothing on disk; 1,000 numbered databases."""

    def __init__(self) -> None:
        self._folder = owned_folder("redis-", None)
        self._port = free_port()
        self._process: Process | None = None

    def url(self, database: int = 0) -> str:
        return f"redis://{_HOST}:{self._port}/{database}"

    def start(self) -> None:
        server = program("redis-server")
        assert server is not None
        self._process = Process(
            [
                server,
                *("--port", str(self._port), "--bind", _HOST, "--save", "", "--appendonly", "no"),
                *("--databases", "1000", "--dir", str(self._folder)),
            ],
            log=self._folder / "server.log",
        )
        self._process.wait_ready(lambda: _answers(self._port))

    def stop(self) -> None:
        if self._process:
            self._process.stop()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
