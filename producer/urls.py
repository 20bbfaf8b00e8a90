"""URLs that may hold a password, read so strictly that no part of it is taken for a host, a path or a parameter.

A password with an ``@``, ``/``, ``#`` or ``?`` that is not percent-encoded moves the borders of all other parts: some
of its characters would be shown as a host, and sent to a name server. `parse` refuses such a URL, and never quotes it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote, unquote

from producer.errors import ConfigError

ENCODING_HINT = "in a password write %40 for @, %2F for /, %3A for :, %23 for #, %3F for ?, %25 for %, %20 for a space"
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.%\-]+)?\]|[\w.~%\-]*)(?::(?P<port>\d*))?")


@dataclass(frozen=True, slots=True)
class NetworkUrl:
    """The parts of a URL. `hosts` are names or addresses (without brackets) with their ports, at least one ('': none).

    `user` and `password` are decoded, `path` (with its slash) and `query` are as they were written.
    """

    scheme: str
    user: str | None
    password: str | None
    hosts: tuple[tuple[str, int | None], ...]
    path: str
    query: str

    @property
    def host(self) -> str:
        """The first one."""
        return self.hosts[0][0]

    @property
    def port(self) -> int | None:
        """The first host's."""
        return self.hosts[0][1]

    @property
    def authority(self) -> str:
        """Hosts and ports as a URL has them, without the user and the password."""
        return ",".join(_written(host) + ("" if port is None else f":{port}") for host, port in self.hosts)

    @property
    def login(self) -> str:
        """User and password as a URL has them, with the ``@``; '' where there are none."""
        if self.user is None and self.password is None:
            return ""
        password = "" if self.password is None else ":" + quote(self.password, safe="")
        return f"{quote(self.user or '', safe='')}{password}@"


def parse(
    url: str, key: str, *, example: str, several: bool = False, names: Collection[str] | None = None
) -> NetworkUrl:
    """The parts of `url`. ConfigError, which names `key` and no part of the URL, where they are not certain.

    `several` hosts may be separated by commas. `names` are the parameters that the query may have; None: any.
    """

    def refuse(reason: str, hint: str = "") -> ConfigError:
        return ConfigError(f"{key}: {reason}", hint=f"{example}; {hint or ENCODING_HINT}")

    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise refuse("the URL holds a space or a control character")
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", url):
        raise refuse("the URL holds a % that does not begin a percent-encoded character")
    if "#" in url:
        raise refuse("the URL holds a # that is not percent-encoded")
    match = _URL.fullmatch(url)
    if match is None:
        raise refuse("not a URL with a scheme")
    login, at, servers = match["authority"].rpartition("@")
    if "@" in login or "@" in match["path"]:
        raise refuse("the URL holds an @ that is not percent-encoded")
    hosts = [_HOST.fullmatch(server) for server in (servers.split(",") if several else [servers])]
    found = [(host["host"], int(host["port"]) if host["port"] else None) for host in hosts if host is not None]
    if len(found) < len(hosts) or any(port is not None and not 0 < port < 65536 for _, port in found):
        raise refuse("host and port cannot be read")
    query = match["query"] or ""
    for item in filter(None, query.split("&")):
        name, equals, _ = item.partition("=")
        if not equals or "=" in name or ("@" in item and not at and (names is None or "@" in name)):
            raise refuse("the URL's parameters cannot be read: each is name=value")
        if names is not None and unquote(name) not in names:
            raise refuse("the URL has a parameter that is not known", f"known: {', '.join(sorted(names))}")
    user, colon, password = login.partition(":")
    return NetworkUrl(
        match["scheme"].lower(),
        unquote(user) if at else None,
        unquote(password) if colon else None,
        tuple((unquote(host.strip("[]")), port) for host, port in found),
        match["path"],
        query,
    )


def passwords(text: str) -> set[str]:
    """What may be a password, or a part of one, in a text with a URL that may be malformed: as written and decoded."""
    _, separator, rest = text.partition("://")
    login, at, _ = rest.rpartition("@")
    if not separator or not at:
        return set()
    password = login.partition(":")[2]
    pieces = {password, *re.split(r"[@/#?]", password)}
    return {form for piece in pieces for form in (piece, unquote(piece)) if form}


def _written(host: str) -> str:
    return f"[{quote(host, safe=':.')}]" if ":" in host else quote(host, safe="")
