"""Whether a stream may continue from a checkpoint: it must be of the same query, and belong to what is configured."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from producer.config import StreamConfig
from producer.errors import OtherQueryError
from producer.identity import Difference, Identity, differences
from producer.model import Dataset, StreamState, unit_partition
from producer.modes import refuse_other_mode

log = structlog.get_logger("producer")


def refuse_other(state: StreamState | None, config: StreamConfig, dataset: Dataset, identity: Identity) -> None:
    """OtherQueryError where the configured stream cannot continue from the checkpoint."""
    if state is not None:
        refuse_other_query(state, config, dataset, identity)
        if unit_partition(state.stream) is None:  # of a part alone it cannot be told
            refuse_other_mode(config, state.checkpoints)


def refuse_other_query(state: StreamState | None, config: StreamConfig, dataset: Dataset, identity: Identity) -> None:
    """OtherQueryError where the checkpoint was made by another query, or belongs to something else."""
    if state is None:
        return
    if unit_partition(state.stream) is None:  # of shared work the stream's own state says it
        refuse_differences(config.name, differences(state.identity, identity))
    fingerprint = dataset.fingerprint(config.traversal)
    if state.fingerprint != fingerprint:
        raise OtherQueryError(
            f"the checkpoint of stream {config.name!r} was made by another query: its table, columns, where, key, "
            f"order or traversal has changed since (fingerprint {state.fingerprint}, now {fingerprint})",
            hint=f"put the configuration back, or read again from the start after: "
            f"producer checkpoint reset CONFIG {config.name}",
        )


def refuse_other_place(state: StreamState | None, **facts: str) -> None:
    """OtherQueryError where the checkpoint belongs to something else, as far as the configuration alone can tell."""
    if state is not None:
        refuse_differences(state.stream, differences(state.identity, Identity().also(**facts)))


def refuse_differences(stream: str, found: Sequence[Difference]) -> None:
    """OtherQueryError that names each difference, and the ways out."""
    if not found:
        return
    told = "; ".join(str(difference) for difference in found)
    ways = [
        "to read all rows, give the stream another name"
        if any(difference.what == "app" for difference in found)  # whose checkpoint a reset would forget
        else f"to read all rows: producer checkpoint reset CONFIG {stream}",
        f"to continue after the rows that are done: producer checkpoint adopt CONFIG {stream}",
    ]
    if found[0].what == "app":
        ways.insert(0, "give each app its own place for checkpoints (checkpoints.path, prefix or kafka.state_topic)")
    raise OtherQueryError(
        f"the checkpoint of stream {stream!r} belongs to something else: {told}", hint="; ".join(ways)
    )


def note_identity(config: StreamConfig, state: StreamState) -> None:
    """Logs that a checkpoint of an older version is taken to belong to what is configured now."""
    if state.identity is None:
        log.info(
            "the checkpoint does not say what it belongs to: it is taken for this stream's, and says so from now on",
            stream=config.name,
            topic=config.topic,
        )
