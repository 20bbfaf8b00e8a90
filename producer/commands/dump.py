"""Owns ``producer dump``: tables to files, with a progress bar for each, stopped cleanly and continued."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

from producer.commands import options
from producer.errors import ConfigError

if TYPE_CHECKING:
    from producer.dump import DumpConfig, DumpProgress, DumpService, DumpStats
    from producer.protocols import Source

_SQL_SCHEMES = ("postgresql", "postgres", "mysql", "mariadb", "sqlite", "duckdb")
_FORMATS = ("jsonl", "csv", "parquet", "json", "avro")


def add_parser(subparsers: Any) -> None:
    text = "write tables to files; run it again to go on where it stopped"
    parser = subparsers.add_parser("dump", help=text, description=text)
    add = parser.add_argument
    add("tables", metavar="TABLE", nargs="+", help="a table; a chat where the source has chats")
    add(
        "--source",
        help="a URL (postgresql://, mysql://, sqlite:///; http(s):// of an IPTVPortal host), 'iptvportal', "
        "or with --config a source's name",
    )
    add("--config", metavar="FILE", help="a configuration whose sources can be named")
    add("--format", choices=_FORMATS, default="jsonl")
    add("--output-dir", metavar="DIR", default="dumps")
    add("--strategy", choices=("offset", "id_range"), default="offset", help="id_range is faster for large tables")
    add("--chunk-size", metavar="ROWS", type=int, default=5000, help="rows a request")
    add("--max-parallel", metavar="N", type=int, default=3, help="ranges of one table side by side (id_range)")
    add("--max-concurrent", metavar="N", type=int, default=2, help="tables side by side")
    add("--compress", action="store_true", help="gzip (inside Avro files deflate)")
    add("--columns", metavar="NAME,...", help="the columns to write, where not all")
    add("--where", metavar="CONDITION", help='SQL, or JSONSQL for IPTVPortal: \'{"eq": ["disabled", false]}\'')
    add("--param", metavar="NAME=VALUE", action="append", default=[], help="a value of a :NAME in --where")
    add("--order-by", metavar="COLUMN", default="id ASC", help="with ASC or DESC; default: the key")
    add("--schema-file", metavar="FILE", help="names and types of IPTVPortal columns")
    add("--no-resume", action="store_true", help="start over, whatever the state file says")
    add("--resume-offset", metavar="N", type=int, default=0, help="begin after this row (id_range: after this id)")
    add("--batch-timeout", metavar="SECONDS", type=float, default=30.0, help="of one request")
    add("--max-retries", metavar="N", type=int, default=3)
    add("--retry-backoff", metavar="FACTOR", type=float, default=1.5, help="retry n waits FACTOR ** n seconds")
    options.add_json(parser, "at the end, a line of JSON for each table on stdout")
    add("--debug", action="store_true", default=argparse.SUPPRESS, help="show each request's timing, and tracebacks")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    _save_memory()
    from producer.dump import DumpService

    kind, source = _source(args)
    configs = _configs(args, chats=kind == "telegram")
    service = DumpService(source)
    try:
        stopped_by = asyncio.run(_dump_all(source, service, configs, args.max_concurrent))
    finally:
        told = [_stats(service, config.table) for config in configs]
        if args.json:
            for stats in told:
                options.say_json(_summary(stats))
        elif len(configs) > 1 or all(stats.error is None for stats in told):
            for stats in told:
                sys.stderr.write(_line(stats) + "\n")
    return 128 + stopped_by if stopped_by else 0


class _NotNeeded(MetaPathFinder):
    """Refuses to import pandas, which Arrow does, where it is installed, to see whether it was given a pandas object:
    36 MB and a third of a second for objects that are never here."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _save_memory() -> None:
    """Half of what the process would take is neither the table's nor ours; to be called before anything is read."""
    import gc

    import pyarrow as pa

    gc.set_threshold(50_000, 10, 10)  # rows make many lists and no cycles: looking for them costs a fifth of the time
    sys.meta_path.insert(0, _NotNeeded())
    pa.set_memory_pool(pa.system_memory_pool())  # the default one keeps for each thread what that thread has freed


def _configs(args: argparse.Namespace, *, chats: bool) -> list[DumpConfig]:
    from pathlib import Path

    from producer.dump import DumpConfig

    return [
        DumpConfig(
            table=table,
            chat=table if chats else None,
            output_dir=Path(args.output_dir),
            chunk_size=args.chunk_size,
            strategy=args.strategy,
            format=args.format,
            compress=args.compress,
            resume=not args.no_resume,
            resume_offset=args.resume_offset,
            order_by=args.order_by,
            where_clause=_where(args.where),
            params=dict(_param(text) for text in args.param),
            columns=[name.strip() for name in args.columns.split(",")] if args.columns else None,
            batch_timeout=args.batch_timeout,
            max_retries=args.max_retries,
            retry_backoff=args.retry_backoff,
            max_parallel=args.max_parallel,
        )
        for table in dict.fromkeys(args.tables)
    ]


def _where(text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--where is not JSON: {error}") from None


def _param(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--param {text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _source(args: argparse.Namespace) -> tuple[str, Source]:
    """The kind, and the source that is named, not yet started; from here on logs go to stderr without its secrets."""
    import importlib

    from producer.logs import configure_logs, redactor
    from producer.sources import SOURCES

    kind, settings = _settings(args)
    args.redact = redactor(settings)
    configure_logs("debug" if args.debug else "warning", "auto", args.redact)
    module, factory, _ = SOURCES[kind]
    source: Source = getattr(importlib.import_module(module), factory)(settings)
    return kind, source


def _settings(args: argparse.Namespace) -> tuple[str, Any]:
    """The kind of the source, and its configuration."""
    if args.config is not None:
        from producer.config import load_config

        config = load_config(args.config)
        names = list(config.sources)
        if args.source is None and len(names) != 1:
            raise ConfigError(f"{args.config} has several sources", hint="--source one of " + ", ".join(names))
        name = args.source or names[0]
        if name not in config.sources:
            raise ConfigError(f"{args.config} has no source {name!r}", hint="there are: " + ", ".join(names))
        return config.sources[name].type, config.sources[name]
    scheme = (args.source or "iptvportal").partition("://")[0].partition("+")[0].lower()
    if scheme in _SQL_SCHEMES:
        return "sql", _checked("sql", {"type": "sql", "url": args.source})
    if scheme in ("http", "https", "iptvportal"):
        env = {name: os.environ.get(f"IPTVPORTAL_{name.upper()}") for name in ("domain", "url", "username", "password")}
        if scheme != "iptvportal":
            env |= {"url": args.source, "domain": None}
        if args.source is None and not any(env.values()):
            raise ConfigError(
                "no source is named",
                hint="--source URL, such as postgresql://..., or --config FILE; for IPTVPortal set IPTVPORTAL_DOMAIN, "
                "IPTVPORTAL_USERNAME and IPTVPORTAL_PASSWORD",
            )
        if missing := [name for name in ("username", "password") if not env[name]]:
            variables = " and ".join(f"IPTVPORTAL_{name.upper()}" for name in missing)
            raise ConfigError(f"{' and '.join(missing)} of IPTVPortal not given", hint=f"set {variables}")
        given = {name: value for name, value in env.items() if value}
        schema_file = args.schema_file or os.environ.get("IPTVPORTAL_SCHEMA_FILE")
        more = {"schema_file": schema_file, "timeout_s": args.batch_timeout}
        return "iptvportal", _checked("iptvportal", {"type": "iptvportal", **given, **more})
    raise ConfigError(
        f"--source {'' if '@' in args.source else repr(args.source) + ' '}is neither a URL nor 'iptvportal'",
        hint="for a source of a configuration give --config FILE as well",
    )


def _checked(kind: str, values: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    from producer.config import source_model

    try:
        return source_model(kind).model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"--source: {place + ': ' if place else ''}{problem['msg']}") from None


async def _dump_all(source: Source, service: DumpService, configs: Sequence[DumpConfig], max_concurrent: int) -> int:
    """Dumps all tables; the number of the signal that stopped it, else 0."""
    signals: list[int] = []
    task = asyncio.ensure_future(service.dump_many(configs, max_concurrent=max_concurrent))

    def stop(number: int) -> None:
        signals.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        with _showing(service, configs) as refresh:
            while not task.done():
                await asyncio.wait({task}, timeout=0.2)
                refresh()
        await task
    except asyncio.CancelledError:
        if not signals:
            raise
    finally:
        await options.close(source)
    return signals[0] if signals else 0


def _stats(service: DumpService, table: str) -> DumpStats:
    from producer.dump import DumpConfig, DumpStats

    return service.get_stats(table) or DumpStats(DumpConfig(table=table))


@contextmanager
def _showing(service: DumpService, configs: Sequence[DumpConfig]) -> Iterator[Callable[[], None]]:
    """A bar for each table on a terminal, else nothing; to be refreshed by calling."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {config.table: bars.add_task(config.table, total=None, told="") for config in configs}

        def refresh() -> None:
            for table, task in tasks.items():
                progress = _stats(service, table).progress
                bars.update(task, completed=progress.dumped_rows, total=progress.total_rows, told=_told(progress))

        yield refresh
        refresh()


def _told(progress: DumpProgress) -> str:
    eta_s = progress.eta_seconds()
    eta = f"  ETA {eta_s:.0f} s" if eta_s not in (0.0, float("inf")) else ""
    rate = progress.rows_per_second()
    return f"{progress.percent_complete():5.1f}%  {progress.dumped_rows:,} rows  {rate:,.0f} rows/s{eta}"


def _line(stats: DumpStats) -> str:
    progress, config = stats.progress, stats.config
    rows = f"{progress.dumped_rows:,} rows"
    match stats.state:
        case "complete":
            files = str(stats.files[0]) if len(stats.files) == 1 else f"{len(stats.files)} files in {config.output_dir}"
            return f"{config.table}: complete, {rows}, {progress.rows_per_second():,.0f} rows/s, {files}"
        case "failed":
            return f"{config.table}: failed after {rows}: {stats.error}"
        case "pending":
            return f"{config.table}: not begun"
    return f"{config.table}: paused after {rows}; the same command goes on from there"


def _summary(stats: DumpStats) -> dict[str, Any]:
    progress = stats.progress
    return {
        "table": stats.config.table,
        "state": stats.state,
        "rows": progress.dumped_rows,
        "bytes": stats.bytes_written,
        "seconds": round(progress.elapsed_seconds(), 3),
        "rows_per_second": round(progress.rows_per_second(), 1),
        "files": [str(path) for path in stats.files],
        "error": stats.error,
    }
