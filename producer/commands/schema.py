"""Owns ``producer schema``: the streams' Avro schemas, and with ``config`` the JSON Schema of configurations."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from producer.commands import options
from producer.errors import ConfigError, SinkUnavailableError

if TYPE_CHECKING:
    from producer.config import Config, StreamConfig
    from producer.encoding.names import KnownNames
    from producer.encoding.registry import RegistryClient
    from producer.parts import PastSchemas, Schemas

log = structlog.get_logger("producer")

_PAST_DEADLINE_S = 10.0
_Act = Callable[["RegistryClient", "StreamConfig", "Schemas"], Awaitable[list[dict[str, Any]]]]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("schema", help="show, check or register the streams' Avro schemas")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, function, text in (
        ("show", _show, "print the key and value schema of each stream (or of one)"),
        ("check", _check, "ask the registry whether it would take them; exit code 1 when not"),
        ("register", _register, "register them, whatever auto_register says"),
    ):
        sub = actions.add_parser(name, help=text, description=text)
        options.add_config(sub)
        sub.add_argument("stream", metavar="STREAM", nargs="?")
        options.add_json(sub)
        sub.set_defaults(run=function)
    text = "print the JSON Schema of configuration files, for editors"
    config = actions.add_parser("config", help=text, description=text)
    options.add_debug(config)
    config.set_defaults(run=_print_config_schema)


def _print_config_schema(_args: argparse.Namespace) -> int:
    from producer.config.schema import config_json_schema

    options.say(json.dumps(config_json_schema(), indent=2, ensure_ascii=False))
    return 0


def _show(args: argparse.Namespace) -> int:
    config = options.load(args)
    for stream, schemas in asyncio.run(_shown(config, _chosen(config, args.stream))):
        told = {"stream": stream.name, "key": schemas.key, "value": schemas.value}
        if args.json:
            options.say_json(told)
        else:
            options.say(json.dumps(told, indent=2, ensure_ascii=False))
    return 0


def _check(args: argparse.Namespace) -> int:
    async def act(client: RegistryClient, stream: StreamConfig, schemas: Schemas) -> list[dict[str, Any]]:
        return [
            {
                "stream": stream.name,
                "subject": client.subject(stream.topic, schema, is_key=is_key),
                "problems": await client.check(stream.topic, schema, is_key=is_key),
            }
            for schema, is_key in _both(schemas)
        ]

    told = _with_registry(args, act)
    for subject in told:
        if args.json:
            options.say_json(subject)
        else:
            options.say(f"{subject['subject']}: {'; '.join(subject['problems']) or 'compatible'}")
    return 1 if any(subject["problems"] for subject in told) else 0


def _register(args: argparse.Namespace) -> int:
    async def act(client: RegistryClient, stream: StreamConfig, schemas: Schemas) -> list[dict[str, Any]]:
        told = []
        for schema, is_key in _both(schemas):
            prefix = await client.register(stream.topic, schema, is_key=is_key, create=True)
            subject = client.subject(stream.topic, schema, is_key=is_key)
            told.append({"stream": stream.name, "subject": subject, "id": int.from_bytes(prefix[1:], "big")})
        return told

    for subject in _with_registry(args, act):
        if args.json:
            options.say_json(subject)
        else:
            options.say(f"{subject['subject']}: id {subject['id']}")
    return 0


async def _shown(config: Config, streams: Sequence[StreamConfig]) -> list[tuple[StreamConfig, Schemas]]:
    async with ReadablePast(config) as past:
        return await _schemas(config, streams, past)


class ReadablePast:
    """The names in the versions of schemas so far, to show what a run would use. Where they cannot be read now, the
    schemas are shown as those of a first version, with a warning."""

    def __init__(self, config: Config) -> None:
        from producer.parts import make_registry, past_schemas

        self._registry = make_registry(config)
        self._past = past_schemas(config, self._registry)
        self._is_away = False

    async def __aenter__(self) -> ReadablePast:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._registry is not None:
            await options.close(self._registry)

    async def known_names(self, topic: str, key: Any, value: Any) -> tuple[KnownNames, KnownNames]:
        from producer.encoding.names import KnownNames

        try:
            async with asyncio.timeout(0 if self._is_away else _PAST_DEADLINE_S):
                if self._registry is not None:
                    await self._registry.start()
                return await self._past.known_names(topic, key, value)
        except (SinkUnavailableError, TimeoutError) as error:
            if not self._is_away:
                log.warning("earlier schemas cannot be read: names of fields may differ in a run", error=str(error))
            self._is_away = True
            return KnownNames(), KnownNames()


def _chosen(config: Config, name: str | None) -> Sequence[StreamConfig]:
    return config.streams if name is None else (options.stream_named(config, name),)


def _both(schemas: Schemas) -> list[tuple[Any, bool]]:
    return [(schema, is_key) for schema, is_key in ((schemas.key, True), (schemas.value, False)) if schema is not None]


async def _schemas(
    config: Config, streams: Sequence[StreamConfig], past: PastSchemas
) -> list[tuple[StreamConfig, Schemas]]:
    """Each stream's schemas, with the names that fields had in the versions before."""
    from producer.parts import make_source, settled_schemas

    sources = {name: make_source(config, name) for name in dict.fromkeys(stream.source for stream in streams)}
    try:
        for source in sources.values():
            await source.start()
        return [
            (stream, await settled_schemas(stream, await sources[stream.source].describe(stream), past))
            for stream in streams
        ]
    finally:
        for source in sources.values():
            await options.close(source)


def _with_registry(args: argparse.Namespace, act: _Act) -> list[dict[str, Any]]:
    config = options.load(args)

    async def whole() -> list[dict[str, Any]]:
        from producer.parts import make_registry

        client = make_registry(config)
        if client is None:
            raise ConfigError("no schema_registry is configured", hint="without one, schemas are in the state topic")
        try:
            await client.start()
            found = await _schemas(config, _chosen(config, args.stream), client)
            return [line for stream, schemas in found for line in await act(client, stream, schemas)]
        finally:
            await options.close(client)

    return asyncio.run(whole())
