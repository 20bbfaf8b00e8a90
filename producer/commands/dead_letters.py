"""Owns ``producer dead-letters list|replay``: the rows that could not be sent, and sending them after all."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from producer.commands import options
from producer.errors import ConfigError

if TYPE_CHECKING:
    from producer.config import Config, KafkaConfig, StreamConfig
    from producer.model import Dataset, Page, Position, Split
    from producer.protocols import Source
    from producer.sinks.kafka import KafkaWriter

_REPLAY_FAILED = 1
_CLOSE_S = 2.0


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("dead-letters", help="list the rows that could not be sent, or send them again")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, function, text in (
        ("list", _list, "the rows that are in a stream's dead letters"),
        (
            "replay",
            _replay,
            "read these rows again from the source and send them as the configuration is now; those that fail again "
            "stay (exit code 1)",
        ),
    ):
        sub = actions.add_parser(name, help=text, description=text)
        options.add_config(sub)
        sub.add_argument("stream", metavar="STREAM")
        options.add_json(sub)
        sub.set_defaults(run=function)


def _list(args: argparse.Namespace) -> int:
    from producer.sinks.dead_letters import topic_of

    config = options.load(args)
    stream = options.stream_named(config, args.stream)
    letters = asyncio.run(read_letters(config.kafka, topic_of(stream)))
    if args.json:
        options.say_json([letter | {"rejected_at": letter["rejected_at"].isoformat()} for letter in letters])
    elif letters:
        options.say_table(
            ("key", "reason", "position", "size", "rejected_at", "message"),
            [
                (
                    letter["key"] or letter["row_key"],
                    letter["reason"],
                    f"{letter['position_after'] or 'start'} .. {letter['position_upto'] or 'not known'}",
                    letter["size"] or len(letter["row"]),
                    f"{letter['rejected_at']:%Y-%m-%d %H:%M:%S}",
                    letter["message"],
                )
                for letter in letters
            ],
        )
    else:
        options.say(f"{stream.name}: no dead letters")
    return 0


def _replay(args: argparse.Namespace) -> int:
    config = options.load(args)
    stream = options.stream_named(config, args.stream)
    outcome = asyncio.run(replay(config, stream))
    counts = Counter(outcome.values())
    told = {name: counts[name] for name in ("sent", "failed again", "not found", "not to be found")}
    if args.json:
        options.say_json({"stream": stream.name, **{name.replace(" ", "_"): n for name, n in told.items()}})
    else:
        options.say(f"{stream.name}: " + ", ".join(f"{count} {name}" for name, count in told.items()))
        for key, how in outcome.items():
            if how != "sent":
                options.say(f"  {key}: {how}")
    return 0 if counts["sent"] == len(outcome) else _REPLAY_FAILED


async def read_letters(config: KafkaConfig, topic: str) -> list[dict[str, Any]]:
    """The letters of a topic that have not been taken back, the newest of each row, in the order of their time.

    None where there is no such topic. SinkUnavailableError when it cannot be read within ``request_timeout_s``.
    """
    import io

    import fastavro
    from aiokafka import AIOKafkaConsumer, TopicPartition
    from aiokafka.errors import KafkaError

    from producer.kafka import client_options, connect, give_up, topic_partitions, translate
    from producer.sinks.dead_letters import SCHEMA

    schema = fastavro.parse_schema(json.loads(json.dumps(SCHEMA)))
    count = await topic_partitions(config, topic)
    if count is None:
        return []
    consumer = AIOKafkaConsumer(
        **client_options(config),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await connect(consumer, consumer.stop, config)
    found: dict[bytes, bytes | None] = {}
    try:
        async with asyncio.timeout(config.request_timeout_s):
            partitions = [TopicPartition(topic, number) for number in range(count)]
            consumer.assign(partitions)
            for partition, end in (await consumer.end_offsets(partitions)).items():
                while await consumer.position(partition) < end:
                    for record in await _records(consumer, partition):
                        found[record.key] = record.value
    except (KafkaError, OSError, TimeoutError) as error:
        raise translate(error, config, topic=topic, doing="read") from None
    finally:
        await give_up(consumer.stop, _CLOSE_S)
    letters: list[dict[str, Any]] = []
    for value in found.values():
        if value is not None:
            # The registry's framing begins with a zero, and a letter with the length of its stream's name.
            letter = fastavro.schemaless_reader(io.BytesIO(value[5:] if value[0] == 0 else value), schema, None)
            assert isinstance(letter, dict)
            letters.append(letter)
    return sorted(letters, key=lambda letter: letter["rejected_at"])


async def _records(consumer: Any, partition: Any) -> Sequence[Any]:
    found = await consumer.getmany(partition, timeout_ms=100)
    return [record for records in found.values() for record in records]


async def replay(config: Config, stream: StreamConfig) -> dict[str, str]:
    """Sends the rows of all letters anew, takes the letters of those that arrived back, and says of each how it went:
    by key ``sent``, ``failed again``, ``not found`` (the source has no such row any more), ``not to be found`` (the
    letter has no key).

    Rows are looked for where their pages were, many at a time; those that are not there (they came late, or what they
    are ordered by has changed since) by their keys, one by one.
    """
    from producer.parts import make_registry, make_source, open_kafka_writer, open_letters_writer
    from producer.sinks.dead_letters import topic_of
    from producer.sinks.kafka import KafkaSink

    letters = await read_letters(config.kafka, topic_of(stream))
    outcome = {letter["row_key"]: "not to be found" for letter in letters}
    places: dict[tuple[str | None, str], set[str]] = {}
    for letter in letters:
        if letter["key"] is not None:
            outcome[letter["row_key"]] = "not found"
            if letter["position_upto"] is not None:
                places.setdefault((letter["position_after"], letter["position_upto"]), set()).add(letter["row_key"])
    if "not found" not in outcome.values():
        return outcome
    async with AsyncExitStack() as stack:
        source, sink = make_source(config, stream.source), KafkaSink(config.kafka, config.app, "replay")
        registry = make_registry(config)
        parts: list[Any] = [source, sink, *([registry] if registry else [])]
        for part in parts:
            stack.push_async_callback(options.close, part)
            await part.start()
        dataset = await source.describe(stream)
        await _refuse_other_source(config, stream, dataset)
        failing = stream.model_copy(update={"on_bad_record": "fail"})
        writer = await open_kafka_writer(failing, dataset, sink, registry)
        own = await open_letters_writer(stream, sink, registry)

        async def send(found: AsyncIterator[_Found]) -> None:
            async for page, numbers in found:
                sent = await _send(writer, page, numbers)
                outcome.update({key: "sent" if key in sent else "failed again" for key in numbers})
                await _take_back(own, stream, sorted(sent))

        rows = _Rows(stream, dataset, source)
        for (after, upto), keys in places.items():
            await send(rows.of_page(after, upto, keys))
        await send(rows.by_key([key for key, how in outcome.items() if how == "not found"]))
    return outcome


async def _refuse_other_source(config: Config, stream: StreamConfig, dataset: Dataset) -> None:
    """The letters are of the rows that the checkpoint belongs to: others may have the same keys."""
    from producer.coordination.units import whole_state
    from producer.kafka import cluster_id
    from producer.ownership import refuse_other_query
    from producer.parts import identity_of

    async with options.open_store(config) as store:
        state = await whole_state(store, stream.name)
    if state is not None:
        refuse_other_query(state, stream, dataset, identity_of(config, stream, dataset, await cluster_id(config.kafka)))


#: A page, and by key the numbers of wanted rows in it; None for a row that was rejected.
_Found: TypeAlias = "tuple[Page, dict[str, int | None]]"


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of letters, as the source has them now."""

    stream: StreamConfig
    dataset: Dataset
    source: Source

    async def of_page(self, after: str | None, upto: str, keys: set[str]) -> AsyncIterator[_Found]:
        """Those that are still between two positions (JSON texts)."""
        from producer.model import OffsetPosition, Split, position_from_json

        start = None if after is None else position_from_json(json.loads(after))
        end = position_from_json(json.loads(upto))
        lower = None if isinstance(end, OffsetPosition) else start
        async for found in self._read(Split("replay", lower, end), start, keys):
            yield found

    async def by_key(self, keys: Iterable[str]) -> AsyncIterator[_Found]:
        """Those that have these keys; where a source cannot look for a key, none."""
        from producer.model import REPLAY, Between

        if self.stream.traversal == "OFFSET":
            return
        column = next((name for name in self.dataset.key if name in self.dataset.order), self.dataset.key[0])
        for key in keys:
            value = json.loads(key)[column]
            try:
                wanted = Between(column, value, value)
                split = await self.source.replay(self.stream, self.dataset, f"{REPLAY}letter", wanted)
            except ConfigError:  # not a value that the column can have, or nothing that can be looked for
                continue
            async for found in self._read(split, split.lower, {key}):
                yield found

    async def _read(self, split: Split, position: Position | None, keys: set[str]) -> AsyncIterator[_Found]:
        from producer.sinks.dead_letters import rejected_key, row_keys

        # Rows that the source cannot give are to be put aside here too.
        stream = self.stream.model_copy(update={"on_bad_record": "dead_letter"})
        reader = await self.source.reader(stream, self.dataset, split)
        missing = set(keys)
        try:
            while missing:
                page = await reader.fetch(position, self.stream.page_size)
                found: dict[str, int | None] = {
                    key: row for row, key in enumerate(row_keys(self.dataset, page.batch)) if key in missing
                }
                found |= {key: None for row in page.rejected if (key := rejected_key(self.dataset, row)) in missing}
                missing -= found.keys()
                if found:
                    yield page, found
                if page.last or page.position is None or page.position == position:
                    return
                position = page.position
        finally:
            await reader.close()


async def _send(writer: KafkaWriter, page: Page, rows: dict[str, int | None]) -> set[str]:
    """The keys of those rows of the page that were sent and acknowledged."""
    import pyarrow as pa

    from producer.salvage import salvage

    wanted = {key: row for key, row in rows.items() if row is not None}
    batch = page.batch.take(pa.array(list(wanted.values()), pa.int64()))
    plain = replace(page, position=None, tombstones=None, rejected=())

    def prepare() -> tuple[list[Any], list[tuple[int, Any]]]:
        return salvage(
            len(wanted), lambda start, stop: writer.prepare(replace(plain, batch=batch.slice(start, stop - start)))
        )

    pieces, bad = await asyncio.to_thread(prepare)
    for piece in pieces:
        await (await writer.submit(piece))
    failed = {row for row, _ in bad}
    return {key for number, key in enumerate(wanted) if number not in failed}


async def _take_back(writer: KafkaWriter, stream: StreamConfig, keys: Sequence[str]) -> None:
    from producer.model import Page
    from producer.sinks.dead_letters import no_letters, taken_back

    if keys:
        prepared = writer.prepare(Page(no_letters(), None, tombstones=taken_back(stream.name, keys)))
        await (await writer.submit(prepared))
