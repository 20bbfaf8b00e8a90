"""The newest schemas of each topic in the state topic: what a changed table is held against where no registry is.

They are under ``newest/<topic>/<name of the value's record>``, as ``{"key": schema or null, "value": schema, "names":
{"key": ..., "value": ...}}``; ``names`` are those of the fields in all versions (`producer.encoding.names`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiokafka.errors import KafkaError

from producer.config import KafkaConfig
from producer.encoding.compatibility import full_name, reading_problems
from producer.encoding.names import KnownNames
from producer.errors import SchemaIncompatibleError, SinkUnavailableError
from producer.kafka import client_options, topic_partitions, translate
from producer.proof import committed_records

_PREFIX = "newest/"

#: Puts a record into the state topic.
Put = Callable[[str, Any], Awaitable[None]]


async def put_nowhere(key: str, value: Any) -> None:
    """For who only reads."""
    raise AssertionError(f"{key} is not to be written")


class NewestSchemas:
    """What the state topic says; it is read once, when it is first asked, and followed from there by what is put."""

    def __init__(self, config: KafkaConfig, state_topic: str, put: Put = put_nowhere) -> None:
        self._config = config
        self._state_topic = state_topic
        self._put = put
        self._turn = asyncio.Lock()
        self._found: dict[str, Mapping[str, Any]] | None = None

    async def known_names(self, topic: str, key: Any, value: Any) -> tuple[KnownNames, KnownNames]:
        """See `producer.parts.PastSchemas`."""
        async with self._turn:
            if self._found is None:
                self._found = await self._read()
        return _known_names(self._found.get(_name(topic, value)))

    async def follow(self, topic: str, key: Any, value: Any) -> None:
        """Makes these the topic's newest schemas. SchemaIncompatibleError, naming the fields, where a reader that has
        them could not read what has been written with the ones before."""
        name = _name(topic, value)
        async with self._turn:
            if self._found is None:
                self._found = await self._read()
            old = self._found.get(name)
            new = _record(key, value, _known_names(old))
            if old is not None and old != new:
                await self._refuse_stale(name, old)
            if old != new:
                old = old or new
                problems = reading_problems(value, old["value"])
                if key is not None and old["key"] is not None:
                    problems += [f"the key's {line}" for line in reading_problems(key, old["key"])]
                if problems:
                    raise SchemaIncompatibleError(
                        f"topic {topic!r}: what has been written cannot be read with the new schema: "
                        + "; ".join(problems),
                        hint="let the column be null or give its field a default in a schema file, leave the change "
                        "out, or write to another topic",
                    )
                await self._put(name, new)
                self._found[name] = new

    async def _refuse_stale(self, name: str, seen: Mapping[str, Any]) -> None:
        """SinkUnavailableError, which is retried, where another process has written newer schemas than were `seen`."""
        self._found = await self._read()
        if self._found.get(name) != seen:
            raise SinkUnavailableError(f"the newest schemas in topic {self._state_topic!r} are another process's")

    async def _read(self) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        try:
            if await topic_partitions(self._config, self._state_topic) is None:
                return found
            async for batch in committed_records(client_options(self._config), self._state_topic, 0):
                for record in batch:
                    if record.key is not None and record.key.startswith(_PREFIX.encode()) and record.value is not None:
                        found[record.key.decode()] = json.loads(record.value)
        except (KafkaError, OSError) as error:  # TimeoutError is an OSError
            raise translate(error, self._config, topic=self._state_topic, doing="read") from None
        return found


def _name(topic: str, value: Any) -> str:
    return f"{_PREFIX}{topic}/{full_name(value)}"


def _known_names(record: Mapping[str, Any] | None) -> tuple[KnownNames, KnownNames]:
    """The names of key and value in all versions up to this one; it may be from a version without ``names``."""
    if record is None:
        return KnownNames(), KnownNames()
    if "names" in record:
        return KnownNames.from_json(record["names"]["key"]), KnownNames.from_json(record["names"]["value"])
    return KnownNames().then(filter(None, [record["key"]])), KnownNames().then([record["value"]])


def _record(key: Any, value: Any, known: tuple[KnownNames, KnownNames]) -> dict[str, Any]:
    in_key, in_value = known
    names = {"key": in_key.then(filter(None, [key])).to_json(), "value": in_value.then([value]).to_json()}
    return {"key": key, "value": value, "names": names}
