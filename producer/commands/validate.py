"""Owns ``producer validate``: everything that can be known before a run, without moving data."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from producer.commands import options
from producer.errors import ConfigError, ProducerError, TransientError

if TYPE_CHECKING:
    from producer.config import Config, StreamConfig
    from producer.encoding.registry import RegistryClient
    from producer.model import Checkpoint, Dataset
    from producer.parts import Schemas
    from producer.protocols import Source

_DEADLINE_S = 30.0
_NULL_KEYS_DEADLINE_S = 10.0
_EXIT_CROSS = 2

T = TypeVar("T")


def add_parser(subparsers: Any) -> None:
    text = "check the configuration and everything that it reaches, without moving data"
    parser = subparsers.add_parser("validate", help=text, description=f"{text}. Exit code 2 when anything is wrong.")
    options.add_config(parser)
    options.add_json(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `detail` says what was found or what is wrong, `hint` the way out."""

    check: str
    ok: bool
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    """A stream's table as far as it could be looked at."""

    stream: StreamConfig
    dataset: Dataset
    schemas: Schemas | None


@dataclass(slots=True)
class _Report:
    checks: list[Check] = field(default_factory=list)

    async def attempt(self, check: str, work: Awaitable[T], told: Callable[[T], str]) -> T | None:
        """Awaits a check and notes how it went; None where it failed."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                found = await work
        except ProducerError as error:
            self.checks.append(Check(check, False, error.message, error.hint))
            return None
        except TimeoutError:
            self.checks.append(Check(check, False, f"no answer within {_DEADLINE_S:.0f} s"))
            return None
        self.checks.append(Check(check, True, told(found)))
        return found


def run(args: argparse.Namespace) -> int:
    try:
        config = options.load(args)
    except ConfigError as error:
        checks = [Check("configuration", False, e.message, e.hint) for e in (error, *error.others)]
    else:
        checks = asyncio.run(_validate(config, args.config))
    redact = getattr(args, "redact", str)
    if args.json:
        options.say_json(
            [{name: redact(v) if isinstance(v, str) else v for name, v in asdict(c).items()} for c in checks]
        )
    else:
        good, bad = ("✓", "✗") if _can_write("✓✗") else ("ok ", "BAD")
        for check in checks:
            hint = f" ({check.hint})" if check.hint else ""
            options.say(redact(f"{good if check.ok else bad} {check.check}: {' '.join(check.detail.split())}{hint}"))
    return 0 if all(check.ok for check in checks) else _EXIT_CROSS


def _can_write(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


async def _validate(config: Config, path: str) -> list[Check]:
    """Sources and broker side by side; then what needs both."""
    head = Check("configuration", True, f"{path}: {len(config.streams)} stream(s), {len(config.sources)} source(s)")
    in_sources, in_broker, in_registry, in_store = _Report(), _Report(), _Report(), _Report()
    found, broker = await asyncio.gather(_sources(config, in_sources), _broker(config, in_broker))
    if config.schema_registry is None and broker:
        await _names(config, found, in_registry)
    await asyncio.gather(_registry(config, found, in_registry), _checkpoints(config, found, broker, in_store))
    return [head, *in_sources.checks, *in_broker.checks, *in_registry.checks, *in_store.checks]


async def _sources(config: Config, report: _Report) -> list[_Found]:
    found: list[_Found] = []
    for name in dict.fromkeys(stream.source for stream in config.streams):
        source: Source | None = None
        try:
            source = await report.attempt(f"source {name}", _started(config, name), lambda _: "connected")
            for stream in config.streams if source is not None else ():
                if stream.source == name and source is not None:
                    found += await _table(source, stream, report)
        finally:
            if source is not None:
                await options.close(source)
    return found


async def _started(config: Config, name: str) -> Source:
    from producer.parts import make_source

    source = make_source(config, name)
    try:
        await source.start()
    except BaseException:
        await options.close(source)
        raise
    return source


async def _table(source: Source, stream: StreamConfig, report: _Report) -> list[_Found]:
    from producer.parts import schemas_of

    def told(dataset: Dataset) -> str:
        rows = "" if dataset.rows_estimate is None else f", about {dataset.rows_estimate:,} rows"
        remarks = "".join(f"; {remark}" for remark in dataset.remarks)
        return f"{dataset.name}: {len(dataset.schema)} columns, key {', '.join(dataset.key) or 'none'}{rows}{remarks}"

    async def schemas(dataset: Dataset) -> Schemas:
        return schemas_of(stream, dataset)

    dataset = await report.attempt(f"stream {stream.name}: table", source.describe(stream), told)
    if dataset is None:
        return []
    derived = await report.attempt(
        f"stream {stream.name}: Avro schema", schemas(dataset), lambda s: f"{len(s.value.get('fields', ()))} fields"
    )
    await _null_keys(source, stream, report)
    return [_Found(stream, dataset, derived)]


async def _null_keys(source: Source, stream: StreamConfig, report: _Report) -> None:
    """Rows without a key, where the table may have some. Without an index the search may take long: then it is left to
    the run."""
    from producer.protocols import NullKeySource

    if not isinstance(source, NullKeySource) or not (columns := await source.null_columns(stream)):
        return
    check, names = f"stream {stream.name}: NULL in the key", ", ".join(columns)
    try:
        async with asyncio.timeout(_NULL_KEYS_DEADLINE_S):
            found = await source.null_keys(stream)
    except (TimeoutError, TransientError):
        report.checks.append(Check(check, True, f"{names} may hold NULL, which was not looked for: it takes long"))
        return
    except ProducerError as error:
        report.checks.append(Check(check, False, error.message, error.hint))
        return
    if not found.rows:
        report.checks.append(Check(check, True, f"{names} may hold NULL, and does not now; each run looks for it"))
    elif stream.on_bad_record == "fail":
        report.checks.append(Check(check, False, found.message(stream.name), found.hint))
    else:
        report.checks.append(Check(check, True, f"{found.message(stream.name)}; to the dead letters"))


async def _broker(config: Config, report: _Report) -> bool:
    async def connected() -> None:
        from producer.kafka import admin

        async with admin(config.kafka):
            pass

    async def partitions(stream: StreamConfig) -> int | None:
        from producer.kafka import check_topic

        return await check_topic(
            config.kafka,
            stream.topic,
            partitions=stream.partitions,
            replication_factor=stream.replication_factor,
            topic_config=stream.topic_config,
        )

    def told(count: int | None) -> str:
        return "is not there yet: will be created" if count is None else f"{count} partition(s)"

    servers = config.kafka.bootstrap_servers
    before = len(report.checks)
    await report.attempt("broker", connected(), lambda _: f"{servers} answers")
    if not report.checks[before].ok:
        return False
    for stream in config.streams:
        await report.attempt(f"topic {stream.topic}", partitions(stream), told)
    return True


async def _cluster(config: Config) -> str:
    from producer.kafka import cluster_id

    with contextlib.suppress(ProducerError):  # the broker's own cross says it
        return await cluster_id(config.kafka)
    return ""


async def _names(config: Config, found: Iterable[_Found], report: _Report) -> None:
    """Where the versions of the schemas are in the state topic: whether each field keeps its column."""
    from producer.parts import past_schemas, settled_schemas

    past = past_schemas(config, None)
    for item in found:
        if item.schemas is not None:
            settled = settled_schemas(item.stream, item.dataset, past)
            told = f"stream {item.stream.name}: names in the Avro schema"
            await report.attempt(told, settled, lambda _: "each field keeps its column")


async def _registry(config: Config, found: Iterable[_Found], report: _Report) -> None:
    from producer.parts import make_registry, settled_schemas

    if config.schema_registry is None:
        return
    registry: RegistryClient | None = None

    async def started() -> RegistryClient:
        nonlocal registry
        registry = make_registry(config)
        assert registry is not None
        await registry.start()
        return registry

    async def accepted(client: RegistryClient, item: _Found) -> str:
        from producer.errors import SchemaIncompatibleError

        schemas = await settled_schemas(item.stream, item.dataset, client)
        for schema, is_key in ((schemas.key, True), (schemas.value, False)):
            if schema is None:
                continue
            if not create:
                await client.register(item.stream.topic, schema, is_key=is_key, create=False)
            elif problems := await client.check(item.stream.topic, schema, is_key=is_key):
                subject = client.subject(item.stream.topic, schema, is_key=is_key)
                raise SchemaIncompatibleError(f"subject {subject!r} would refuse it: {'; '.join(problems)}")
        return "compatible" if create else "registered"

    create = config.schema_registry.auto_register
    try:
        client = await report.attempt("schema registry", started(), lambda client: f"{client.url} answers")
        for item in found if client is not None else ():
            if client is not None and item.schemas is not None:
                await report.attempt(f"stream {item.stream.name}: registry", accepted(client, item), str)
    finally:
        if registry is not None:
            await options.close(registry)


async def _checkpoints(config: Config, found: Iterable[_Found], broker: bool, report: _Report) -> None:
    if config.checkpoints.type == "kafka":
        from producer.kafka import topic_partitions

        if not broker:
            return  # its cross stands there already
        if await topic_partitions(config.kafka, config.state_topic) is None:
            report.checks.append(Check("checkpoints", True, f"topic {config.state_topic} will be created"))
            return

    cluster = await _cluster(config) if broker else ""

    async def resumes(item: _Found) -> str:
        from producer.coordination.units import whole_state
        from producer.ownership import refuse_other
        from producer.parts import identity_of

        assert store is not None
        state = await whole_state(store, item.stream.name)
        refuse_other(state, item.stream, item.dataset, identity_of(config, item.stream, item.dataset, cluster))
        if state is None:
            return "none yet: starts from the beginning"
        await _refuse_replaced(config, item.stream, state.checkpoints)
        return f"goes on after {sum(c.rows for c in state.checkpoints):,} rows"

    async with AsyncExitStack() as around:
        opened = around.enter_async_context(options.open_store(config))
        store = await report.attempt("checkpoints", opened, lambda _: f"{config.checkpoints.type} store is ready")
        for item in found if store is not None else ():
            await report.attempt(f"stream {item.stream.name}: checkpoint", resumes(item), str)


async def _refuse_replaced(config: Config, stream: StreamConfig, checkpoints: Sequence[Checkpoint]) -> None:
    """TableReplacedError where a run would stop with it."""
    from producer.protocols import ReplaceableSource
    from producer.sources import ONE_SESSION

    if stream.on_replaced != "fail" or config.sources[stream.source].type in ONE_SESSION:
        return
    source = await _started(config, stream.source)
    try:
        if isinstance(source, ReplaceableSource):
            await source.describe(stream)
            await source.refuse_replaced(stream, checkpoints)
    finally:
        await options.close(source)
