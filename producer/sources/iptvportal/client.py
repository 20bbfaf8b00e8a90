"""The IPTVPortal client: JSON-RPC over HTTPS, one session, batches, and the translation of every failure.

Protocol: ``/api/jsonrpc/`` authorises, ``/api/jsonsql/`` reads; the session goes in the header
``Iptvportal-Authorization: sessionid=...`` and lives about an hour.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx
import orjson

from producer.errors import (
    AuthenticationError,
    ConfigError,
    PermanentError,
    RateLimitedError,
    RequestTimeoutError,
    SourceUnavailableError,
)
from producer.sources.iptvportal.answers import error_of, error_text, is_session_error, loads
from producer.sources.iptvportal.query import QueryBuilder, Request
from producer.urls import parse

if TYPE_CHECKING:
    from producer.sources.iptvportal.source import IptvPortalSource

Json = Any
Row = list[Json]
Call = tuple[str, Mapping[str, Json]]  # method, params

log = logging.getLogger("producer.iptvportal")

_MAX_TEXT = 300
#: How often one call may meet an expired session and log in again.
_LOGINS = 5


class AsyncIPTVPortalClient:
    """A session with one operator's API; an async context manager, also usable by several tasks at once.

    `domain` is the operator's (``https://{domain}.admin.iptvportal.ru``), `url` any host in its place. What is not
    given comes from ``IPTVPORTAL_DOMAIN`` (or ``IPTVPORTAL_URL``), ``IPTVPORTAL_USERNAME`` and
    ``IPTVPORTAL_PASSWORD``; ConfigError names what is missing. `schema_file` (or ``IPTVPORTAL_SCHEMA_FILE``) names the
    tables' columns, which the API does not. `timeout_s` bounds each request as a whole.
    Nothing is retried here but a call that met an expired session. `query` builds requests for `execute`.
    """

    def __init__(
        self,
        *,
        domain: str | None = None,
        url: str | None = None,
        username: str | None = None,
        password: str | None = None,
        schema_file: str | None = None,
        timeout_s: float = 30.0,
        ssl_cafile: str | None = None,
        max_connections: int = 16,
    ) -> None:
        env = os.environ.get
        if url is None and domain is None:
            url, domain = env("IPTVPORTAL_URL"), env("IPTVPORTAL_DOMAIN")
        self._username = username if username is not None else env("IPTVPORTAL_USERNAME")
        self._password = password if password is not None else env("IPTVPORTAL_PASSWORD")
        self.schema_file = schema_file or env("IPTVPORTAL_SCHEMA_FILE")
        settings = {"domain": url or domain, "username": self._username, "password": self._password}
        missing = [name for name, value in settings.items() if not value]
        if missing:
            variables = ", ".join("IPTVPORTAL_" + name.upper() for name in missing)
            raise ConfigError(f"iptvportal: {', '.join(missing)} not given", hint=f"set {variables}")
        self._url = (url or f"https://{domain}.admin.iptvportal.ru").rstrip("/")
        parts = parse(self._url, "iptvportal: url", example="https://HOST")
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ConfigError("iptvportal: url must begin with https:// (or http://), and name a host")
        #: without credentials, as it may be shown
        self.host = f"{parts.scheme}://{parts.authority}{parts.path}"
        self._timeout_s = timeout_s
        self._ssl_cafile = ssl_cafile
        # Not httpx's own bound: a request that is cancelled while it waits for a connection there keeps its place.
        self._places = asyncio.Semaphore(max_connections)
        self._http: httpx.AsyncClient | None = None
        self._session: str | None = None
        self._authorising = asyncio.Lock()
        self._alone = asyncio.Lock()
        self._ids = itertools.count(1)
        self.query = QueryBuilder()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Connects and proves the credentials (AuthenticationError). Idempotent."""
        if self._http is None:
            self._http = httpx.AsyncClient(
                base_url=self._url,
                http2=importlib.util.find_spec("h2") is not None,  # used where the server's TLS offers it
                timeout=self._timeout_s,
                limits=httpx.Limits(max_connections=None),  # bounded by `_places`
                verify=_tls(self._ssl_cafile),
            )
        if self._session is None:
            await self._authorise(None)

    async def close(self) -> None:
        """Closes the connections; the client can be started again."""
        http, self._http, self._session = self._http, None, None
        if http is not None:
            await http.aclose()

    def source(self, *, timeout_s: float | None = None) -> IptvPortalSource:
        """This client's tables as a source of the engine; closing the source leaves the client open."""
        from producer.sources.iptvportal.source import IptvPortalSource

        if timeout_s is not None:
            self._timeout_s = max(self._timeout_s, timeout_s)
        return IptvPortalSource.of_client(self)

    async def call(self, method: str, params: Mapping[str, Json]) -> Json:
        """One request's ``result``. PermanentError carries the API's own text; what may pass is a TransientError."""
        return (await self.batch([(method, params)]))[0]

    async def batch(self, calls: Sequence[Call]) -> list[Json]:
        """The results of several requests sent as one, in the order of `calls`; the first error is raised."""
        raw = await self.fetch_raw(calls)
        return await asyncio.to_thread(self.results, raw, calls)

    async def select(self, **params: Json) -> list[Row]:
        """The rows of one select: lists of values in the order of ``data``. `from` is spelt ``from_``."""
        rows = await self.call("select", {"from" if k == "from_" else k: v for k, v in params.items()})
        if not isinstance(rows, list):
            raise PermanentError(f"iptvportal: select answered with a {type(rows).__name__}, not with rows")
        return rows

    async def execute(self, request: Request) -> Json:
        """The result of a request that `query` has built: for a select its rows."""
        return await self.call(request["method"], request["params"])

    async def execute_many(self, requests: Sequence[Request]) -> list[Json]:
        """The results of several requests, sent as one batch, in their order."""
        return await self.batch([(request["method"], request["params"]) for request in requests]) if requests else []

    async def fetch_raw(self, calls: Sequence[Call]) -> tuple[Sequence[int], bytes]:
        """Sends the calls; the ids they were given and the undecoded answer, for `results` (in any thread)."""
        await self.start()
        ids = [next(self._ids) for _ in calls]
        requests = [
            {"jsonrpc": "2.0", "id": i, "method": method, "params": dict(params)}
            for i, (method, params) in zip(ids, calls, strict=True)
        ]
        body = orjson.dumps(requests if len(requests) > 1 else requests[0])
        async with self._alone:  # wait for a call that is logging in
            session = self._session
        status, answer = await self._post("/api/jsonsql/", body, session)
        if _is_expired(status, answer):
            status, answer = await self._repeat(body, session)
        self._raise_for_status(status, answer)
        return ids, answer

    async def _repeat(self, body: bytes, session: str | None) -> tuple[int, bytes]:
        """The answer to a request that met an expired `session`. Nothing new is sent meanwhile: where sessions last
        for a few calls only, the others would use up each new one."""
        async with self._alone:
            for _ in range(_LOGINS):
                await self._authorise(session)
                session = self._session
                status, answer = await self._post("/api/jsonsql/", body, session)
                if not _is_expired(status, answer):
                    return status, answer
        # Each login succeeded, so the account is right: another session of it, or a short life, ends ours.
        raise SourceUnavailableError(
            f"iptvportal: {self.host} refused {_LOGINS} new sessions, one after another{self._detail(answer)}",
            hint="does another program use the same account?",
        )

    def results(self, raw: tuple[Sequence[int], bytes], calls: Sequence[Call]) -> list[Json]:
        """The results of an answer by its requests' ids, whatever their order. Errors as in `call`."""
        ids, body = raw
        answers = loads(body)
        by_id = {a.get("id"): a for a in (answers if isinstance(answers, list) else [answers]) if isinstance(a, dict)}
        if list(by_id) == [None]:  # one error for the whole request
            by_id = dict.fromkeys(ids, by_id[None])
        out = []
        for i, (method, params) in zip(ids, calls, strict=True):
            answer = by_id.get(i)
            table = params.get("from")
            subject = f"iptvportal: {method}" + (f" from {table}" if isinstance(table, str) else "")
            if answer is None:
                raise SourceUnavailableError(f"{subject} was not answered")
            if answer.get("error") is not None:
                raise error_of(subject, answer["error"], self._clean(error_text(answer["error"])))
            if "result" not in answer:
                raise PermanentError(f"{subject} was answered with neither result nor error")
            out.append(answer["result"])
        return out

    async def _authorise(self, old: str | None) -> None:
        async with self._authorising:
            if self._session != old:
                return  # another task has done it meanwhile
            params = {"username": self._username, "password": self._password}
            body = orjson.dumps({"jsonrpc": "2.0", "id": next(self._ids), "method": "authorize_user", "params": params})
            status, raw = await self._post("/api/jsonrpc/", body, None)
            if status in (401, 403):
                raise self._refused(raw)
            self._raise_for_status(status, raw)
            answer = loads(raw)
            result = answer.get("result") if isinstance(answer, dict) else None
            session = result.get("session_id") if isinstance(result, dict) else None
            if not isinstance(session, str) or not session:
                raise self._refused(raw)
            self._session = session

    def _refused(self, raw: bytes) -> AuthenticationError:
        return AuthenticationError(
            f"iptvportal: {self.host} refused user {self._username!r}{self._detail(raw)}",
            hint="check the username and the password",
        )

    async def _post(self, path: str, body: bytes, session: str | None) -> tuple[int, bytes]:
        if self._http is None:
            raise SourceUnavailableError("iptvportal: the client is closed")
        headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
        if session is not None:
            headers["Iptvportal-Authorization"] = f"sessionid={session}"
        began = time.perf_counter()
        try:
            async with self._places, asyncio.timeout(self._timeout_s):
                # Streamed, since httpx's responses are cycles that would keep the body until they are collected.
                request = self._http.stream("POST", path, content=body, headers=headers, timeout=self._timeout_s)
                async with request as response:
                    answer = b"".join([part async for part in response.aiter_bytes()])
        except TimeoutError:
            raise RequestTimeoutError(
                f"iptvportal: Request timeout: no answer from {self.host} in {self._timeout_s:g} s",
                hint="raise batch_timeout, or lower chunk_size",
            ) from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise SourceUnavailableError(
                f"iptvportal: {self.host}: {type(error).__name__}: {self._clean(str(error))}"
            ) from None
        log.debug(
            "%s %s: %d, %d bytes in %.1f ms",
            path,
            response.http_version,
            response.status_code,
            len(answer),
            (time.perf_counter() - began) * 1000,
        )
        if response.status_code == 429:
            raise RateLimitedError(
                f"iptvportal: {self.host} asks to slow down",
                retry_after_s=_seconds(response.headers.get("Retry-After")),
            )
        return response.status_code, answer

    def _raise_for_status(self, status: int, raw: bytes) -> None:
        if status < 400:
            return
        text = f"iptvportal: {self.host} answered HTTP {status}{self._detail(raw)}"
        if status in (401, 403):
            raise AuthenticationError(text)
        if status >= 500 or status == 408:
            raise SourceUnavailableError(text)
        raise PermanentError(text)

    def _detail(self, raw: bytes) -> str:
        """What the API said about it, after a colon; '' where it said nothing that is JSON."""
        try:
            answer = orjson.loads(raw)
        except ValueError:
            return ""
        error = answer.get("error") if isinstance(answer, dict) else None
        return "" if error is None else ": " + self._clean(error_text(error))

    def _clean(self, text: str) -> str:
        """A foreign text on one line, shortened, without our secrets."""
        for secret in (self._password, self._session):
            if secret:
                text = text.replace(secret, "***")
        return " ".join(text.split())[:_MAX_TEXT]


def _is_expired(status: int, raw: bytes) -> bool:
    """Whether the API refuses the session. Rows are not decoded for it: an error is short."""
    if status == 401:
        return True
    if len(raw) > 4096 or b'"error"' not in raw:
        return False
    try:
        answers = orjson.loads(raw)
    except ValueError:
        return False
    errors = [a.get("error") for a in (answers if isinstance(answers, list) else [answers]) if isinstance(a, dict)]
    return any(error is not None and is_session_error(error) for error in errors)


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _tls(cafile: str | None) -> Any:
    if cafile is None:
        return True
    import ssl

    try:
        return ssl.create_default_context(cafile=cafile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"iptvportal: ssl_cafile {cafile}: {error}") from None
