"""How each database names itself, for the checkpoints of its streams: by what a new address does not change.

A password in the URL never gets into a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from producer.identity import Identity
from producer.sources.sql.sqlite_file import file_number

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_GTID = re.compile(r"(\d+)-(\d+)-\d+")

#: MySQL's and MariaDB's variables that `mysql_origin` reads; each server has some of them.
MYSQL_VARIABLES = ("server_uuid", "server_uid", "server_id", "gtid_executed", "gtid_binlog_state", "gtid_slave_pos")


def address(url: str) -> str:
    """Host and port, or the socket's folder, as the URL writes them."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2] or ",".join(parse_qs(parts.query).get("host", ["local"]))
    return f"address {host.lower()}"


def postgres_origin(url: str, database: str, system: str | None) -> Identity:
    """`system` is the cluster's identifier, which its physical replicas share; None where the role may not read it."""
    return Identity({"source": "postgresql", "database": database}, system or "", (address(url),))


def mysql_origin(url: str, database: str, variables: Mapping[str, str]) -> Identity:
    """A server has no identifier that its replicas share: it is known by its own, its address, or its replicas'
    history of transactions."""
    uuid, number = variables.get("server_uuid", ""), variables.get("server_id", "")
    names = [address(url)]
    if uuid or (uid := variables.get("server_uid", "")):
        names.append(f"server {uuid or uid}")
    if uuid:
        lineage = f"server {uuid}"
        ancestors = {f"server {found}" for found in _UUID.findall(variables.get("gtid_executed", ""))}
    else:
        told = f"{variables.get('gtid_binlog_state', '')},{variables.get('gtid_slave_pos', '')}"
        written = {f"gtid {domain}-{server}" for domain, server in _GTID.findall(told)}
        own = {name for name in written if name.endswith(f"-{number}")}
        lineage, ancestors = min(own, default=""), written - own
    return Identity(
        {"source": "mysql", "database": database},
        "",
        tuple(names),
        lineage,
        ancestors=frozenset(ancestors - {lineage}),
    )


def sqlite_origin(path: Path) -> Identity:
    """A file is known by its place or by its number on the disk: one that was moved is still the same."""
    number = file_number(path)
    names = (f"file {path.resolve()}", *((f"inode {number}",) if number else ()))
    return Identity({"source": "sqlite"}, "", names)
