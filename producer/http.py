"""Owns the HTTP side: metrics, liveness, readiness, the state of the streams, and pause, resume and replay.

The pages and the OpenAPI document are files in ``producer/web``. Who may change something: see `_refuse_change`; who
may read: see `_refuse_other_name`.
``/livez`` says only that the event loop turns: it never depends on Kafka or a source, or a broken broker would get
every producer restarted. ``/readyz`` is 200 when every stream has been started or stands by, and says why otherwise.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from producer.config import HttpConfig
from producer.errors import ConfigError, ProducerError, TransientError
from producer.logs import Redact
from producer.metrics import CONTENT_TYPE, Metrics
from producer.model import Between, Checkpoint, Json, position_to_json
from producer.worker import worker_id

if TYPE_CHECKING:
    from aiohttp import web
    from pydantic import SecretStr

    from producer.service import Service
    from producer.status import StreamStatus

_SHUTDOWN_S = 2.0
_MAX_BODY_BYTES = 64 * 1024
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
#: By which proxies say that they are some. One that says nothing cannot be told from a program of this machine.
_OF_PROXIES = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")


def bind(config: HttpConfig) -> socket.socket:
    """A listening socket on the configured address; ConfigError if that cannot be had. Port 0: any free one.

    So does a port that is in use and that nobody asked for: the default one, where several processes run.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        where = f"http: cannot listen on {config.host}:{config.port}"
        if error.errno == errno.EADDRINUSE and "port" not in config.model_fields_set:
            return bind(HttpConfig(host=config.host, port=0))
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{where}: the port is in use", hint="stop what uses it, set http.port, or 0 for any free one"
            ) from None
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    return listener


async def asked(listener: socket.socket) -> None:
    """Waits until somebody connects to `listener`, and leaves the connection in its queue."""
    loop = asyncio.get_running_loop()
    someone = asyncio.Event()
    loop.add_reader(listener, someone.set)
    try:
        await someone.wait()
    finally:
        loop.remove_reader(listener)


@asynccontextmanager
async def serving(listener: socket.socket, metrics: Metrics, service: Service, redact: Redact) -> AsyncIterator[None]:
    """Answers requests on `listener` inside ``async with``, and closes it. `redact` goes over streams' errors."""
    from aiohttp import web

    application = _application(metrics, service, redact, on_loopback=_is_loopback(str(listener.getsockname()[0])))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield
    finally:
        async with asyncio.timeout(2 * _SHUTDOWN_S):
            await runner.cleanup()
        listener.close()


def _application(metrics: Metrics, service: Service, redact: Redact, *, on_loopback: bool) -> web.Application:
    from aiohttp import web

    config = service.config.http

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        found = service.streams
        states = {name: status.state for name, status in found.items()}
        waiting = [name for name, status in found.items() if status.state == "starting" and not status.stands_by]
        answer = {"ready": bool(states) and not waiting, "streams": states}
        return web.json_response(answer, status=200 if answer["ready"] else 503)

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(metrics.text), headers={"Content-Type": CONTENT_TYPE})

    async def streams(_: web.Request) -> web.Response:
        told = [status_json(status, redact) for status in service.streams.values()]
        return web.json_response({"worker": worker_id(), "app": service.config.app, "streams": told})

    def named(request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in service.streams:
            raise _Answer(404, f"no stream is named {name!r}", f"there are: {', '.join(service.streams)}")
        return name

    async def stream(request: web.Request) -> web.Response:
        return web.json_response(status_json(service.streams[named(request)], redact))

    async def pause(request: web.Request) -> web.Response:
        name = named(request)
        await service.pause(name)
        return web.json_response(status_json(service.streams[name], redact))

    async def resume(request: web.Request) -> web.Response:
        name = named(request)
        await service.resume(name)
        return web.json_response(status_json(service.streams[name], redact))

    async def replay(request: web.Request) -> web.Response:
        name = named(request)
        split = await service.replay(name, _wanted(await request.read()))
        return web.json_response({"stream": name, "split": split.id}, status=202)

    def page(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        text = resources.files("producer.web").joinpath(name).read_text(encoding="utf-8")
        policy = {"Content-Security-Policy": _policy(text)}

        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=text, content_type="text/html", charset="utf-8", headers=policy)

        return answer

    async def openapi(_: web.Request) -> web.Response:
        text = resources.files("producer.web").joinpath("openapi.json").read_text(encoding="utf-8")
        return web.Response(text=text, content_type="application/json")

    @web.middleware
    async def guarded(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            name = _asked_name(request)
            if on_loopback:
                _refuse_other_name(request, name, config)
            if request.method not in ("GET", "HEAD"):
                _refuse_change(request, name, config.token)
            response: web.StreamResponse = await handler(request)
        except _Answer as refusal:
            response = web.json_response(
                {"error": refusal.message, "hint": refusal.hint}, status=refusal.status, headers=refusal.headers
            )
        except ProducerError as error:
            status = 400 if isinstance(error, ConfigError) else 503 if isinstance(error, TransientError) else 409
            told = {"error": redact(error.message), "hint": redact(error.hint)}
            response = web.json_response(told, status=status)
        return response

    async def secured(_: web.Request, response: web.StreamResponse) -> None:
        for header, value in _SECURITY_HEADERS.items():
            response.headers.setdefault(header, value)

    application = web.Application(middlewares=[guarded], client_max_size=_MAX_BODY_BYTES)
    application.on_response_prepare.append(secured)  # not in `guarded`: aiohttp's own errors do not come by there
    application.add_routes(
        [
            web.get("/", page("page.html")),
            web.get("/api", page("api.html")),
            web.get("/openapi.json", openapi),
            web.get("/livez", livez),
            web.get("/readyz", readyz),
            web.get("/metrics", scrape),
            web.get("/streams", streams),
            web.get("/streams/{name}", stream),
            web.post("/streams/{name}/pause", pause),
            web.post("/streams/{name}/resume", resume),
            web.post("/streams/{name}/replay", replay),
        ]
    )
    return application


class _Answer(Exception):
    """A request that is refused: the status, and what is told of it."""

    def __init__(self, status: int, message: str, hint: str = "", headers: dict[str, str] | None = None) -> None:
        self.status, self.message, self.hint, self.headers = status, message, hint, headers


def _asked_name(request: web.Request) -> str:
    """The name by which we are asked, without the port."""
    try:
        return urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        raise _Answer(400, "the Host header is not the name of a host") from None


def _refuse_other_name(request: web.Request, name: str, config: HttpConfig) -> None:
    """A port that only this machine reaches answers to the machine's own names, and to who knows the token.

    A page of another site could otherwise read it: it has its own name lead here (DNS rebinding), and the browser
    takes us for the same site. Browsers always send the name, so who sends none is no browser.
    """
    if "Host" not in request.headers or _is_own(name) or name == config.host.lower() or _knows(request, config.token):
        return
    raise _Answer(
        403,
        "only for a loopback host name, such as localhost",
        "to ask by another name, send http.token, or listen on another address than loopback with http.host",
    )


def _refuse_change(request: web.Request, name: str, token: SecretStr | None) -> None:
    """Whoever may change something knows the token or, where none is configured, sits at this machine.

    A page of another site in the same browser may neither: browsers send its ``Origin``, and where its name has been
    made to lead here (DNS rebinding), that name stands in ``Host``.
    """
    if _is_from_another_site(request):
        raise _Answer(403, "not from another site")
    if token is not None:
        if not _knows(request, token):
            challenge = {"WWW-Authenticate": 'Bearer realm="producer"'}
            hint = "send Authorization: Bearer TOKEN, with the value of http.token"
            raise _Answer(401, "the token is missing or wrong", hint, challenge)
        return
    forwarded = any(header in request.headers for header in _OF_PROXIES)
    if forwarded or not _is_loopback(request.remote or "") or not _is_own(name):
        raise _Answer(
            403, "only from the machine itself", "to do this from elsewhere, configure http.token and send it"
        )


def _is_from_another_site(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    try:
        return origin is not None and urlsplit(origin).netloc != request.host
    except ValueError:
        return True


def _knows(request: web.Request, token: SecretStr | None) -> bool:
    """Whether the configured token is sent. A header's bytes that are no UTF-8 are compared as they came."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if token is None or scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(errors="surrogateescape"), token.get_secret_value().encode())


def _is_own(name: str) -> bool:
    return name == "localhost" or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _wanted(body: bytes) -> Between:
    """The range in the body of a replay: ``{"from": ..., "to": ..., "column": ...}``, each of them optional."""
    usage = 'a JSON object such as {"from": 100, "to": 200} or {"column": "updated_at", "from": "2026-01-01"}'
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        raise _Answer(400, "the body is not JSON", usage) from None
    if not isinstance(value, dict) or (unknown := set(value) - {"from", "to", "column"}):
        what = f"unknown: {', '.join(sorted(unknown))}" if isinstance(value, dict) else "the body is not an object"
        raise _Answer(400, what, usage)
    ends = [value.get("from"), value.get("to")]
    if not isinstance(value.get("column", ""), str) or any(
        end is not None and (isinstance(end, bool) or not isinstance(end, str | int | float)) for end in ends
    ):
        raise _Answer(400, "column is text, from and to are text or numbers", usage)
    if ends == [None, None]:
        raise _Answer(400, "neither from nor to is given", usage)
    first, last = (None if end is None else str(end) for end in ends)
    return Between(value.get("column", ""), first, last)


def _policy(page: str) -> str:
    """A Content-Security-Policy by which only the page's own script and style are run."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def status_json(status: StreamStatus, redact: Redact) -> dict[str, Json]:
    """A stream as ``/streams`` tells it: times in ISO 8601, UTC; None for what is not known."""
    return {
        "name": status.name,
        "source": status.source,
        "topic": status.topic,
        "state": status.state,
        "rows_read": status.rows_read,
        "rows_acked": status.rows_acked,
        "rows_committed": status.rows_committed,
        "bytes_acked": status.bytes_acked,
        "dead_letters": status.dead_letters,
        "rows_remaining": status.rows_remaining,
        "rows_total_estimate": status.rows_total_estimate,
        "error": None if status.error is None else redact(status.error),
        "hint": None if status.hint is None else redact(status.hint),
        "retrying": None if status.retrying is None else redact(status.retrying),
        "table_replacements": status.table_replacements,
        "table_replaced": None if status.table_replaced is None else redact(status.table_replaced),
        "started_at": _iso(status.started_at),
        "finished_at": _iso(status.finished_at),
        "last_commit_at": _iso(status.last_commit_at),
        "splits": [
            *(
                _split_json(name, split.checkpoint, worker_id() if split.active or status.shared else None)
                for name, split in status.named_splits
            ),
            *(_split_json(name, checkpoint, owner) for name, checkpoint, owner in status.elsewhere),
        ],
    }


def _split_json(name: str, checkpoint: Checkpoint, owner: str | None) -> Json:
    return {
        "id": name,
        "position": position_to_json(checkpoint.position),
        "lower": position_to_json(checkpoint.split.lower),
        "upper": position_to_json(checkpoint.split.upper),
        "replays": _range(checkpoint.split.between),
        "rows": checkpoint.rows,
        "done": checkpoint.done,
        "owner": None if checkpoint.done else owner,
    }


def _range(between: Between | None) -> Json:
    if between is None:
        return None
    first, last = (None if end is None else str(end) for end in (between.first, between.last))
    return {"column": between.column, "from": first, "to": last}


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
