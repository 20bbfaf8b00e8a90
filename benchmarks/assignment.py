"""Owns the simulation of how work spreads over many workers: `python -m benchmarks.assignment`.

It runs the assignor that the workers use (aiokafka's sticky one) on pretended groups, as the group's leader would, and
counts how evenly units are spread, how many move when a worker leaves or joins, and how long the leader needs.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.protocol.metadata import MetadataResponse_v0
from aiokafka.structs import TopicPartition

TOPIC = "state"
Owned = dict[str, frozenset[int]]


def cluster(partitions: int) -> ClusterMetadata:
    """A cluster of one broker with the state topic."""
    found = ClusterMetadata()
    parts = [(0, partition, 0, [0], [0]) for partition in range(partitions)]
    found.update_metadata(MetadataResponse_v0([(0, "localhost", 9092)], [(0, TOPIC, parts)]))
    return found


def assign(topic: ClusterMetadata, members: Iterable[str], before: Owned) -> Owned:
    """Who owns what after the group's leader has assigned it, given what each owned before."""
    metadata = {}
    for member in members:
        held = [TopicPartition(TOPIC, partition) for partition in sorted(before.get(member, ()))]
        metadata[member] = StickyPartitionAssignor._metadata({TOPIC}, held or None, 1)
    result = StickyPartitionAssignor.assign(topic, metadata)
    return {member: frozenset(dict(given.assignment).get(TOPIC, [])) for member, given in result.items()}


def moved(before: Owned, after: Owned) -> int:
    """Units that have another owner than before."""
    owner = {partition: member for member, partitions in before.items() for partition in partitions}
    return sum(owner[partition] != member for member, partitions in after.items() for partition in partitions)


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulates the assignment of units to workers.")
    parser.add_argument("--units", type=int, nargs="+", default=[12, 120, 1000])
    parser.add_argument("--workers", type=int, nargs="+", default=[3, 10, 100])
    args = parser.parse_args()
    print("units  workers  units a worker  moved: one leaves  one joins   leader, s")
    for units, workers in itertools.product(args.units, args.workers):
        topic, members = cluster(units), [f"worker-{n:03}" for n in range(workers)]
        began = time.perf_counter()
        first = assign(topic, members, {})
        left = assign(topic, members[1:], first)
        joined = assign(topic, members, left)
        seconds = (time.perf_counter() - began) / 3
        sizes = [len(partitions) for partitions in first.values()]
        spread = f"{min(sizes)} to {max(sizes)}"
        print(f"{units:5}  {workers:7}  {spread:>14}  {moved(first, left):17}  {moved(left, joined):9}  {seconds:9.3f}")


if __name__ == "__main__":
    main()
