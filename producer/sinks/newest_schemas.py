"""Owns the newest schemas of each topic in the state topic: what a changed table is held against where no registry is.

They stand under ``newest/<topic>/<name of the value's record>``, as ``{"key": schema or null, "value": schema}``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiokafka.errors import KafkaError

from producer.config import KafkaConfig
from producer.encoding.compatibility import full_name, reading_problems
from producer.errors import SchemaIncompatibleError
from producer.kafka import client_options, topic_partitions, translate
from producer.proof import committed_records

_PREFIX = "newest/"

#: Puts a record into the state topic.
Put = Callable[[str, Any], Awaitable[None]]


class NewestSchemas:
    """What the state topic says; it is read once, when it is first asked, and followed from there by what is put."""

    def __init__(self, config: KafkaConfig, state_topic: str, put: Put) -> None:
        self._config = config
        self._state_topic = state_topic
        self._put = put
        self._turn = asyncio.Lock()
        self._found: dict[str, Mapping[str, Any]] | None = None

    async def follow(self, topic: str, key: Any, value: Any) -> None:
        """Makes these the topic's newest schemas. SchemaIncompatibleError, naming the fields, where a reader that has
        them could not read what has been written with the ones before."""
        name = f"{_PREFIX}{topic}/{full_name(value)}"
        new = {"key": key, "value": value}
        async with self._turn:
            if self._found is None:
                self._found = await self._read()
            old = self._found.get(name, new)
            if old != new or name not in self._found:
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
