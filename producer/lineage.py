"""Owns the lineage: OpenLineage run events (specification 2-0-2) of each stream, to a server or into a file.

A stream's run STARTs, is RUNNING from time to time, and ends in COMPLETE, FAIL or, where it was stopped, ABORT. Events
are made from the streams' status by one task; a server that is away costs events and a warning, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from producer import __version__
from producer.model import Json
from producer.naming import source_dataset, topic_dataset

if TYPE_CHECKING:
    from producer.config import Config, LineageConfig
    from producer.logs import Redact
    from producer.status import StreamStatus

log = structlog.get_logger("producer")

_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_ERROR_FACET = "https://openlineage.io/spec/facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet"
_STATISTICS_FACET = (
    "https://openlineage.io/spec/facets/1-0-2/OutputStatisticsOutputDatasetFacet.json"
    "#/$defs/OutputStatisticsOutputDatasetFacet"
)
_LOOK_EVERY_S = 0.5
_SEND_TIMEOUT_S = 5.0
_ENDS = {"complete": "COMPLETE", "failed": "FAIL", "stopped": "ABORT"}

#: Takes one event; OSError where it cannot.
Send = Callable[[Json], None]


@dataclass(slots=True)
class _Run:
    """What has been told of a stream."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started_at: float | None = None
    told_at: float = 0.0


@asynccontextmanager
async def lineage(
    config: Config, streams: Callable[[], Mapping[str, StreamStatus]], redact: Redact = str
) -> AsyncIterator[None]:
    """Tells of `streams` inside ``async with``, and of their ends after it."""
    if config.lineage is None:
        yield
        return
    teller = _Teller(config, config.lineage, redact)
    telling = asyncio.create_task(teller.run(streams))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait({telling})
        await teller.tell(streams())


class _Teller:
    def __init__(self, config: Config, settings: LineageConfig, redact: Redact) -> None:
        self._settings = settings
        self._redact = redact
        self._namespace = settings.namespace or config.app
        self._configured = {stream.name: stream for stream in config.streams}
        self._sources = config.sources
        self._servers = config.kafka.bootstrap_servers
        self._runs: dict[str, _Run] = {}
        self._send = sender(settings)
        self._lock = asyncio.Lock()

    async def run(self, streams: Callable[[], Mapping[str, StreamStatus]]) -> None:
        while True:
            await self.tell(streams())
            await asyncio.sleep(_LOOK_EVERY_S)

    async def tell(self, streams: Mapping[str, StreamStatus]) -> None:
        """Sends what has happened since the last call."""
        async with self._lock:
            for status in streams.values():
                for kind, at, run in self._news(status):
                    await self._sent(self._event(kind, at, run, status))

    def _news(self, status: StreamStatus) -> list[tuple[str, float, _Run]]:
        begun = status.started_at
        if begun is None:
            if status.state != "failed":
                return []
            begun = datetime.now(UTC).timestamp()  # it has failed before it could start
        run = self._runs.get(status.name)
        if run is None or (run.started_at is None and status.state not in _ENDS):
            run = self._runs[status.name] = _Run(started_at=begun, told_at=begun)
            news = [("START", begun, run)]
        else:
            news = []
        if run.started_at is None:
            return news  # its end has been told
        now = datetime.now(UTC).timestamp()
        if status.state in _ENDS:
            news.append((_ENDS[status.state], status.finished_at or now, run))
            run.started_at = None
        elif now - run.told_at >= self._settings.interval_s:
            news.append(("RUNNING", now, run))
            run.told_at = now
        return news

    def _event(self, kind: str, at: float, run: _Run, status: StreamStatus) -> Json:
        stream = self._configured[status.name]
        facets: dict[str, Json] = {}
        if status.error is not None:
            message = self._redact(status.error)
            facets["errorMessage"] = _facet(_ERROR_FACET, message=message, programmingLanguage="Python")
        counts = _facet(_STATISTICS_FACET, rowCount=status.rows_acked, size=status.bytes_acked)
        read = source_dataset(self._sources[stream.source], stream, status.table)
        written = topic_dataset(self._servers, status.topic)
        return {
            "eventType": kind,
            "eventTime": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "producer": _producer(),
            "schemaURL": _SCHEMA,
            "run": {"runId": run.id, "facets": facets},
            "job": {"namespace": self._namespace, "name": status.name},
            "inputs": [_dataset(read)],
            "outputs": [{**_dataset(written), "outputFacets": {"outputStatistics": counts}}],
        }

    async def _sent(self, event: Json) -> None:
        try:
            await asyncio.to_thread(self._send, event)
        except Exception as error:  # the run is not to end for it, whatever it is
            reason = self._redact(str(error)) if isinstance(error, OSError) else type(error).__name__
            log.warning("lineage event not delivered", event_type=event["eventType"], reason=reason)


def _producer() -> str:
    return f"urn:streaming-producer:{__version__}"


def _dataset(named: tuple[str, str]) -> dict[str, Json]:
    return dict(zip(("namespace", "name"), named, strict=True))


def _facet(schema: str, **values: Json) -> Json:
    return {"_producer": _producer(), "_schemaURL": schema, **values}


def sender(settings: LineageConfig) -> Send:
    """POSTs each event to ``url``, or appends it as a line to ``path``."""

    def post(event: Json) -> None:
        import httpx

        assert settings.url is not None
        key = settings.api_key
        headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        try:
            httpx.post(settings.url, json=event, headers=headers, timeout=_SEND_TIMEOUT_S).raise_for_status()
        except httpx.HTTPError as error:
            raise OSError(type(error).__name__) from None

    def append(event: Json) -> None:
        assert settings.path is not None
        with Path(settings.path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    return post if settings.url is not None else append
