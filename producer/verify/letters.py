"""Which rows of a stream are in its dead letters."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from producer.config import KafkaConfig, StreamConfig
from producer.model import Dataset, RejectedRow
from producer.sinks.dead_letters import KEY_SCHEMA, rejected_key, row_keys, topic_of
from producer.sinks.json_text import json_column

_PREFIX_BYTES = 5  # of the registry's framing
_TEXT = pa.large_string()


@dataclass(frozen=True, slots=True)
class DeadLetterKeys:
    """The keys of the rows that are in the dead letters, as JSON objects by column.

    ``without_key`` counts the letters that do not tell their row's key, because it is masked.
    """

    keys: frozenset[str] = frozenset()
    without_key: int = 0

    def flags(self, dataset: Dataset, batch: pa.RecordBatch) -> npt.NDArray[np.bool_] | bool:
        """Of each row of the source whether it has a letter."""
        if not self.keys or not dataset.key or not batch.num_rows:
            return False
        try:
            texts = _key_texts(dataset.key, batch)
        except (pa.ArrowException, ValueError, OverflowError):  # a value without a form in JSON
            return np.array([key in self.keys for key in row_keys(dataset, batch)], np.bool_)
        import pyarrow.compute as pc  # here, since it takes 60 ms of the start

        found: npt.NDArray[np.bool_] = pc.is_in(texts, value_set=pa.array(sorted(self.keys), _TEXT)).to_numpy(
            zero_copy_only=False
        )
        return found

    def has(self, dataset: Dataset, rejected: RejectedRow) -> bool:
        """Whether a row that the source cannot give has a letter."""
        return rejected_key(dataset, rejected) in self.keys


def _key_texts(names: Sequence[str], batch: pa.RecordBatch) -> pa.Array:
    import pyarrow.compute as pc

    parts: list[Any] = []
    for name in names:
        start = ("," if parts else "{") + orjson.dumps(name).decode() + ":"
        column = json_column(batch.column(name), batch.schema.field(name))
        parts += [pa.scalar(start, _TEXT), column.cast(_TEXT)]
    return pc.binary_join_element_wise(*parts, pa.scalar("}", _TEXT), pa.scalar("", _TEXT))


async def read_dead_letters(config: KafkaConfig, stream: StreamConfig) -> DeadLetterKeys:
    """The keys of the stream's letters that have not been taken back; none for a stream that has no dead letters."""
    import fastavro

    from producer.kafka import client_options, topic_partitions
    from producer.proof import committed_records

    topic = topic_of(stream)
    if stream.on_bad_record != "dead_letter" or (partitions := await topic_partitions(config, topic)) is None:
        return DeadLetterKeys()
    schema = fastavro.parse_schema(json.loads(json.dumps(KEY_SCHEMA)))
    there: dict[str, bool] = {}
    for partition in range(partitions):
        async for batch in committed_records(client_options(config), topic, partition):
            for record in batch:
                data = record.key or b""
                data = data[_PREFIX_BYTES:] if data[:1] == b"\0" else data  # else it is the length of the stream's name
                key: Any = fastavro.schemaless_reader(io.BytesIO(data), schema, None)
                if key["stream"] == stream.name:
                    there[key["row_key"]] = record.value is not None
    letters = [key for key, is_there in there.items() if is_there]
    keys = frozenset(key for key in letters if key.startswith("{"))
    return DeadLetterKeys(keys, len(letters) - len(keys))
