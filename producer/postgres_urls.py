"""PostgreSQL's URLs, in all forms that libpq documents, for libpq and for asyncpg.

See https://www.postgresql.org/docs/current/libpq-connect.html. asyncpg has some of libpq's parameters: of the others
those that change nothing here are left out for it, and the rest are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from producer.errors import ConfigError
from producer.urls import NetworkUrl, parse

EXAMPLE = "postgresql://user:password@host:5432/database"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BOTH = _names("""
host port dbname user password passfile sslmode sslcert sslkey sslrootcert sslcrl sslnegotiation sslpassword
ssl_min_protocol_version ssl_max_protocol_version target_session_attrs krbsrvname gsslib service options
application_name
""")
#: For asyncpg: without any effect there, or with its own way of the same.
_LEFT_OUT = _names("""
connect_timeout client_encoding fallback_application_name keepalives keepalives_idle keepalives_interval
keepalives_count tcp_user_timeout sslcompression sslsni
""")
#: For asyncpg: values that ask for nothing that it has not got.
_HARMLESS = {
    "gssencmode": ("disable", "prefer"),
    "channel_binding": ("disable", "prefer"),
    "load_balance_hosts": ("disable",),
}
_LIBPQ_ONLY = _names("""
hostaddr require_auth sslcertmode sslcrldir sslkeylogfile requirepeer gssdelegation min_protocol_version
max_protocol_version scram_client_key scram_server_key servicefile
""")
_KNOWN = _BOTH | _LEFT_OUT | _LIBPQ_ONLY | {*_HARMLESS, "replication"}
_SECRETS = ("password", "sslpassword", "scram_client_key", "scram_server_key")


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """A URL's parts, and its parameters, decoded; the last one of a name counts."""

    url: NetworkUrl
    parameters: Mapping[str, str]

    @property
    def where(self) -> str:
        """The servers, for messages."""
        asked = self.parameters
        if self.url.host or len(self.url.hosts) > 1:
            return ",".join(f"{host or 'localhost'}:{port or 5432}" for host, port in self.url.hosts)
        if host := asked.get("host") or asked.get("hostaddr"):
            return f"{host}:{asked.get('port') or self.url.port or 5432}"
        if service := asked.get("service"):
            return f"the service {service!r}"
        return f"the local socket:{asked.get('port') or self.url.port or 5432}"

    @property
    def user(self) -> str:
        return self.parameters.get("user") or self.url.user or ""

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.url.password, *(self.parameters.get(name) for name in _SECRETS))))


def read(url: str, key: str) -> PostgresUrl:
    """ConfigError, which names `key`, for what is no URL or asks for what cannot be."""
    found = parse(url, key, example=EXAMPLE, several=True, names=_KNOWN)
    if found.scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ConfigError(f"{key} is not a PostgreSQL URL", hint=EXAMPLE)
    pairs = (item.partition("=") for item in found.query.split("&") if item)
    asked = {unquote(name): unquote(value) for name, _, value in pairs}
    if "replication" in asked:
        raise ConfigError(f"{key}: replication is not supported: rows are read by SELECT", hint="leave it out")
    if asked.get("client_encoding", "utf8").lower().replace("-", "") not in ("utf8", "unicode"):
        raise ConfigError(f"{key}: client_encoding must be UTF8, in which all text is read", hint="leave it out")
    return PostgresUrl(found, asked)


def for_libpq(found: PostgresUrl, limits: Mapping[str, str]) -> str:
    """The URL for libpq, with the `limits` that it does not set itself."""
    url, asked = found.url, {**limits, **found.parameters}
    # libpq knows %20 for a space, and not the + of web forms.
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in asked.items())
    return f"postgresql://{url.login}{url.authority}{url.path}?{query}"


def for_asyncpg(found: PostgresUrl, key: str) -> str:
    """The URL for asyncpg; ConfigError, which names `key`, for a parameter that it has not got and that matters."""
    asked = dict(found.parameters)
    for name in found.parameters:
        if name in _LEFT_OUT or asked[name] in _HARMLESS.get(name, ()):
            del asked[name]
        elif name not in _BOTH or (name, asked[name]) == ("sslrootcert", "system"):
            raise ConfigError(
                f"{key}: the parameter {name!r} is for libpq only",
                hint="checkpoints and notify are asyncpg's: leave it out, or use another store, or poll",
            )
    url = found.url
    if not url.host and len(url.hosts) == 1 and url.port:  # a port of the usual hosts
        asked.setdefault("port", str(url.port))
    if host := asked.pop("host", ""):  # here, since asyncpg takes one port for several hosts as an error
        url = replace(url, hosts=tuple((one, None) for one in host.split(",")))
    if port := asked.pop("port", ""):
        url = _with_ports(url, port, key)
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in asked.items() if value)
    return f"postgresql://{url.login}{_authority(url)}{url.path}" + (f"?{query}" if query else "")


def _with_ports(url: NetworkUrl, text: str, key: str) -> NetworkUrl:
    ports = text.split(",")
    ports = ports * len(url.hosts) if len(ports) == 1 else ports
    if len(ports) != len(url.hosts) or not all(port.isdecimal() for port in ports if port):
        raise ConfigError(f"{key}: the parameter 'port' is not one port, or one for each host", hint=EXAMPLE)
    hosts = (host for host, _ in url.hosts)
    return replace(
        url, hosts=tuple((host, int(port) if port else None) for host, port in zip(hosts, ports, strict=True))
    )


def _authority(url: NetworkUrl) -> str:
    """With a port for each host: one without has the usual one, whatever the environment says of another's."""
    if len(url.hosts) == 1:
        return url.authority
    return replace(url, hosts=tuple((host or "localhost", port or 5432) for host, port in url.hosts)).authority
