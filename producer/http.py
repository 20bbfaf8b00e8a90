"""Owns the HTTP side: metrics, liveness, readiness, the state of the streams, and pause and resume.

``/livez`` says only that the event loop turns: it never depends on Kafka or a source, or a broken broker would get
every producer restarted. ``/readyz`` is 200 when every stream has been started, and says why otherwise.
"""

from __future__ import annotations

import asyncio
import errno
import html
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from producer.config import HttpConfig
from producer.errors import ConfigError
from producer.logs import Redact
from producer.metrics import CONTENT_TYPE, Metrics
from producer.model import Json, position_to_json

if TYPE_CHECKING:
    from aiohttp import web

    from producer.service import Service
    from producer.stream import StreamStatus

_SHUTDOWN_S = 2.0
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def bind(config: HttpConfig) -> socket.socket:
    """A listening socket on the configured address; ConfigError if that cannot be had. Port 0: any free one."""
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
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{where}: the port is in use", hint="stop what uses it, set http.port, or 0 for any free one"
            ) from None
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    return listener


@asynccontextmanager
async def serving(listener: socket.socket, metrics: Metrics, service: Service, redact: Redact) -> AsyncIterator[None]:
    """Answers requests on `listener` inside ``async with``, and closes it. `redact` goes over streams' errors."""
    from aiohttp import web

    runner = web.AppRunner(_application(metrics, service, redact), access_log=None, shutdown_timeout=_SHUTDOWN_S)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield
    finally:
        async with asyncio.timeout(2 * _SHUTDOWN_S):
            await runner.cleanup()
        listener.close()


def _application(metrics: Metrics, service: Service, redact: Redact) -> web.Application:
    from aiohttp import web

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        states = {name: status.state for name, status in service.streams.items()}
        waiting = [name for name, state in states.items() if state == "starting"]
        answer = {"ready": bool(states) and not waiting, "streams": states}
        return web.json_response(answer, status=200 if answer["ready"] else 503)

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(metrics.text), headers={"Content-Type": CONTENT_TYPE})

    async def streams(_: web.Request) -> web.Response:
        return web.json_response({"streams": [status_json(status, redact) for status in service.streams.values()]})

    def named(request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in service.streams:
            raise web.HTTPNotFound(text=f"no stream {name!r}; there are: {', '.join(service.streams)}\n")
        return name

    async def stream(request: web.Request) -> web.Response:
        return web.json_response(status_json(service.streams[named(request)], redact))

    async def pause(request: web.Request) -> web.Response:
        name = named(request)
        service.pause(name)
        return web.json_response(status_json(service.streams[name], redact))

    async def resume(request: web.Request) -> web.Response:
        name = named(request)
        service.resume(name)
        return web.json_response(status_json(service.streams[name], redact))

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=status_page(service.streams, redact), content_type="text/html")

    @web.middleware
    async def guarded(request: web.Request, handler: Any) -> web.StreamResponse:
        """A page of another site that is open in the same browser may not pause streams."""
        origin = request.headers.get("Origin")
        if request.method == "POST" and origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="not from another site\n")
        response: web.StreamResponse = await handler(request)
        response.headers.update(_SECURITY_HEADERS)
        return response

    application = web.Application(middlewares=[guarded])
    application.add_routes(
        [
            web.get("/", page),
            web.get("/livez", livez),
            web.get("/readyz", readyz),
            web.get("/metrics", scrape),
            web.get("/streams", streams),
            web.get("/streams/{name}", stream),
            web.post("/streams/{name}/pause", pause),
            web.post("/streams/{name}/resume", resume),
        ]
    )
    return application


def status_json(status: StreamStatus, redact: Redact) -> dict[str, Json]:
    """A stream as ``/streams`` tells it: times in ISO 8601, UTC; None for what is not known."""
    return {
        "name": status.name,
        "source": status.source,
        "topic": status.topic,
        "state": status.state,
        "rows_read": status.rows_read,
        "rows_acked": status.rows_acked,
        "bytes_acked": status.bytes_acked,
        "dead_letters": status.dead_letters,
        "rows_remaining": status.rows_remaining,
        "rows_total_estimate": status.rows_total_estimate,
        "error": None if status.error is None else redact(status.error),
        "hint": None if status.hint is None else redact(status.hint),
        "retrying": None if status.retrying is None else redact(status.retrying),
        "started_at": _iso(status.started_at),
        "finished_at": _iso(status.finished_at),
        "last_commit_at": _iso(status.last_commit_at),
        "splits": [
            {
                "id": split.checkpoint.split.id,
                "position": position_to_json(split.checkpoint.position),
                "rows": split.checkpoint.rows,
                "done": split.checkpoint.done,
            }
            for split in status.splits
        ],
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def status_page(streams: Mapping[str, StreamStatus], redact: Redact) -> str:
    """A page with one row a stream, which loads itself again every two seconds."""
    head = ("stream", "source", "topic", "state", "read", "acknowledged", "remaining", "last commit", "error")
    rows = []
    for status in streams.values():
        told = status_json(status, redact)
        cells = (
            *(told[key] for key in ("name", "source", "topic", "state", "rows_read", "rows_acked")),
            "" if told["rows_remaining"] is None else told["rows_remaining"],
            told["last_commit_at"] or "",
            told["error"] or "",
        )
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>producer</title>'
        '<meta http-equiv="refresh" content="2"><style>body{font:14px system-ui,sans-serif;margin:2em}'
        "table{border-collapse:collapse}th,td{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:left}"
        "</style></head><body><h1>Streams</h1><table><thead><tr>"
        + "".join(f"<th>{title}</th>" for title in head)
        + "</tr></thead><tbody>"
        + "".join(rows)
        + "</tbody></table></body></html>"
    )
