"""Owns the claim that a spool knows, whatever happened between two searches, which keys are on the topic alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from producer.keyspool import KeySpool

KEYS = [bytes([n]) for n in range(12)]

keys = st.sampled_from(KEYS)
records = st.lists(st.tuples(keys, st.booleans()), max_size=20)
ranges = st.dictionaries(st.integers(0, 2), st.sets(keys, max_size=4))


@given(st.lists(st.tuples(records, ranges), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_what_is_deleted_is_what_the_topic_has_and_no_range_of_the_source(
    searches: list[tuple[list[tuple[bytes, bool]], dict[int, set[bytes]]]],
) -> None:
    spool = KeySpool()
    topic: set[bytes] = set()
    source: dict[int, set[bytes]] = {}
    numbers: dict[int, int] = {}
    try:
        for number, (written, read) in enumerate(searches):
            for start in range(0, len(written), 3):
                spool.record(written[start : start + 3])
            spool.recorded()
            for key, gone in written:
                (topic.discard if gone else topic.add)(key)
            for place, there in read.items():  # a range that is read anew gets another number
                spool.forget(numbers.get(place, -1))
                numbers[place] = 10 * number + place
                spool.add(numbers[place], sorted(there))
                source[place] = there
            gone_keys = topic - set().union(*source.values())
            assert set(spool.deleted(100)) == gone_keys
            assert len(spool.deleted(2)) == min(2, len(gone_keys))
    finally:
        spool.close()
