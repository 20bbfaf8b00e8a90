"""Owns the arithmetic of late commits: which ids below those that were read may still appear, and for how long. No I/O.

Ids are handed out when a row is inserted and seen when its transaction commits, so a lower one may come after a higher
one. A `Ledger` remembers what has been passed and may still be filled:

- a `Hole` is a range of ids that were missing between two that were read: asked for by id until it is filled, or until
  it has been open for too long;
- a `Passage` is a range of keys that was read while transactions were running, for databases that can tell by which
  transaction a row was inserted: looked through when all of these transactions have ended, and again ever more seldom,
  for a transaction has a time, and may have chosen a key, long before it writes and gets a number.

Times are seconds since 1970, transaction numbers those of the database, never wrapped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from producer.model import Json, KeyPosition, position_from_json, position_to_json

#: How an id that is below all others is bounded.
LEAST_ID = -(2**63)
#: No id is above it.
GREATEST_ID = 2**63 - 1
#: Each wait for the next look through a passage is so many times the one before.
SLOWER = 4
#: `Passage.looks` of one that is too wide for that: looked through when it is settled, and at its end.
WIDE = 99


@dataclass(frozen=True, slots=True)
class Hole:
    """The ids `first` to `last`, both inclusive, missing since they were first passed."""

    first: int
    last: int
    since: float
    least: int = 0  # `Snapshot.least` of when it was passed; 0 where the database has no such


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a database says of its transactions: all below `least` have ended, none from `end` on has begun."""

    least: int
    end: int


@dataclass(frozen=True, slots=True)
class Passage:
    """The keys `lower` (exclusive; None: from the beginning) to `upper` (inclusive), passed since that time.

    `least` is `Snapshot.least` of before they were read; `end` is `Snapshot.end` of some time after, when whoever had
    been given a key by then has begun its transaction: None until then. Once it has been looked through, `looks` times,
    the last one at the time `looked`, `least` is that of before that look.
    """

    lower: KeyPosition | None
    upper: KeyPosition
    since: float
    least: int
    end: int | None = None
    looks: int = 0
    looked: float = 0.0

    def settled(self, now: Snapshot) -> bool:
        """Whether every transaction that may still fill it, of those with a number, has ended."""
        return self.end is not None and now.least >= self.end

    def due_again(self, at: float, first_s: float) -> bool:
        """Whether it is to be looked through once more. What has been looked through as often is due at the same time,
        and one passage after it."""
        every_s = first_s * float(SLOWER) ** self.looks
        return at // every_s != self.looked // every_s


@dataclass(frozen=True, slots=True)
class Ledger:
    """What may still be filled: holes in ascending order that do not touch, and passages in the order of passing, those
    apart that have been `looked` through.

    Of ids up to `floor` no holes are noted: they were there when the stream was planned, with holes of their own.
    `expired` counts the holes that were given up since the stream began. `beyond` is the last one read of the keys that
    are no ids, and stand above all ids.
    """

    holes: tuple[Hole, ...] = ()
    passages: tuple[Passage, ...] = ()
    looked: tuple[Passage, ...] = ()
    floor: int = LEAST_ID - 1
    expired: int = 0
    beyond: KeyPosition | None = None


def gaps(after: int, ids: Sequence[int], since: float, least: int = 0) -> list[Hole]:
    """The ids that are missing between `after` and the last of ascending `ids`."""
    found = []
    expected = after + 1
    for number in ids:
        if number > expected:
            found.append(Hole(expected, number - 1, since, least))
        expected = number + 1
    return found


def opened(ledger: Ledger, holes: Iterable[Hole]) -> Ledger:
    """With what of `holes` lies above the floor; they lie above all that it has."""
    above = (replace(hole, first=max(hole.first, ledger.floor + 1)) for hole in holes if hole.last > ledger.floor)
    return replace(ledger, holes=(*ledger.holes, *above))


def filled(ledger: Ledger, ids: Iterable[int]) -> Ledger:
    """Without `ids`: what they leave of the holes they lie in."""
    numbers = sorted(set(ids))
    if not numbers or not ledger.holes:
        return ledger
    firsts = [hole.first for hole in ledger.holes]
    inside: dict[int, list[int]] = {}
    for number in numbers:
        place = bisect_right(firsts, number) - 1
        if place >= 0 and number <= ledger.holes[place].last:
            inside.setdefault(place, []).append(number)
    rest: list[Hole] = []
    for place, hole in enumerate(ledger.holes):
        expected = hole.first
        for number in inside.get(place, ()):
            if number > expected:
                rest.append(replace(hole, first=expected, last=number - 1))
            expected = number + 1
        if expected <= hole.last:
            rest.append(replace(hole, first=expected))
    return replace(ledger, holes=tuple(rest))


def expire(ledger: Ledger, before: float) -> tuple[Ledger, tuple[Hole, ...]]:
    """Without the holes that are open since before that time; and these."""
    old = tuple(hole for hole in ledger.holes if hole.since < before)
    if not old:
        return ledger, ()
    kept = tuple(hole for hole in ledger.holes if hole.since >= before)
    return replace(ledger, holes=kept, expired=ledger.expired + len(old)), old


def crowded_out(ledger: Ledger, most: int) -> tuple[Ledger, tuple[Hole, ...]]:
    """With at most `most` holes, and the rest: the lowest, which have been open for longest. They are not counted."""
    surplus = max(0, len(ledger.holes) - most)
    return replace(ledger, holes=ledger.holes[surplus:]), ledger.holes[:surplus]


def passed(ledger: Ledger, passage: Passage, merge_within_s: float, most: int) -> Ledger:
    """With one more passage, which begins where the last one ends or above.

    It is put to the last one where that is young, and of the same transactions: looked through with an older `least`
    than its own, all rows since then would come a second time. From `most` passages on that is put up with.
    """
    last = ledger.passages[-1] if ledger.passages else None
    young = last is not None and last.end is None and passage.since - last.since <= merge_within_s
    alike = last is not None and last.looks == passage.looks
    if last is None or not young or not alike or (passage.least != last.least and len(ledger.passages) < most):
        return replace(ledger, passages=(*ledger.passages, passage))
    whole = replace(last, upper=passage.upper, least=min(last.least, passage.least))
    return replace(ledger, passages=(*ledger.passages[:-1], whole))


def closed(ledger: Ledger, before: float, now: Snapshot) -> Ledger:
    """With an end for the passages since before that time: who was given a key has begun by now."""
    if not any(passage.end is None and passage.since < before for passage in ledger.passages):
        return ledger
    return replace(
        ledger,
        passages=tuple(
            replace(passage, end=now.end) if passage.end is None and passage.since < before else passage
            for passage in ledger.passages
        ),
    )


def looked_through(ledger: Ledger, passage: Passage, upto: KeyPosition, part: Passage | None) -> Ledger:
    """With what is left of `passage` after `upto`, and `part`, which is to be looked through again."""
    rest = () if upto == passage.upper else (replace(passage, lower=upto),)
    parts = () if part is None else (part,)
    if any(held is passage for held in ledger.passages):
        passages, looked = _in_place(ledger.passages, passage, rest), (*ledger.looked, *parts)
    else:
        passages, looked = ledger.passages, _in_place(ledger.looked, passage, (*parts, *rest))
    return replace(ledger, passages=passages, looked=looked)


def _in_place(passages: tuple[Passage, ...], one: Passage, others: tuple[Passage, ...]) -> tuple[Passage, ...]:
    return tuple(new for passage in passages for new in (others if passage is one else (passage,)))


def merged(ledger: Ledger, within_s: float) -> Ledger:
    """With one passage for several that were looked through as often, one behind the other and soon after each other:
    their rows are older than the first of these looks, so hardly any comes a second time."""
    found: list[Passage] = []
    for passage in ledger.looked:
        if found and _is_one(found[-1], passage, within_s):
            found[-1] = replace(found[-1], upper=passage.upper, since=max(found[-1].since, passage.since))
        else:
            found.append(passage)
    return replace(ledger, looked=tuple(found))


def _is_one(before: Passage, after: Passage, within_s: float) -> bool:
    soon = before.least <= after.least and 0 <= after.looked - before.looked <= within_s
    return soon and before.looks == after.looks and _follows(before.upper, after.lower)


def _follows(upper: KeyPosition, lower: KeyPosition | None) -> bool:
    """Whether a range ends where another begins, or at a lower id: of other keys only the database knows the order."""
    match upper, lower:
        case KeyPosition((int(one),)), KeyPosition((int(other),)):
            return one <= other
    return upper == lower


def to_json(ledger: Ledger) -> Mapping[str, Json]:
    """The form in which a checkpoint keeps it."""
    return {
        "holes": [[hole.first, hole.last, round(hole.since, 1), hole.least] for hole in ledger.holes],
        "passages": [_passage_to_json(passage) for passage in ledger.passages],
        "looked": [_passage_to_json(passage) for passage in ledger.looked],
        "floor": ledger.floor,
        "expired": ledger.expired,
        "beyond": position_to_json(ledger.beyond),
    }


def counts(value: Mapping[str, Json] | None) -> tuple[int, int]:
    """Of the form of `to_json`: how many holes are open, and how many have been given up. No ledger has none."""
    return (0, 0) if value is None or "holes" not in value else (len(value["holes"]), int(value["expired"]))


def from_json(value: Mapping[str, Json]) -> Ledger:
    """The inverse of `to_json`; ValueError, KeyError or TypeError for anything else."""
    return Ledger(
        tuple(Hole(int(first), int(last), float(since), int(least)) for first, last, since, least in value["holes"]),
        tuple(_passage_from_json(*passage) for passage in value["passages"]),
        tuple(_passage_from_json(*passage) for passage in value.get("looked", ())),
        int(value["floor"]),
        int(value["expired"]),
        _key(value.get("beyond")),
    )


def _passage_to_json(passage: Passage) -> Json:
    ends = (position_to_json(passage.lower), position_to_json(passage.upper))
    since, looked = round(passage.since, 1), round(passage.looked, 1)
    return [*ends, since, passage.least, passage.end, passage.looks, looked]


def _passage_from_json(
    lower: Json, upper: Json, since: Json, least: Json, end: Json, looks: Json = 0, looked: Json = 0.0
) -> Passage:
    """Without the last two, as checkpoints of older versions have it, it has not been looked through."""
    key, number = _required(_key(upper)), None if end is None else int(end)
    return Passage(_key(lower), key, float(since), int(least), number, int(looks), float(looked))


def _key(value: Json) -> KeyPosition | None:
    position = position_from_json(value)
    if position is not None and not isinstance(position, KeyPosition):
        raise ValueError(f"not a key: {value!r}")
    return position


def _required(position: KeyPosition | None) -> KeyPosition:
    if position is None:
        raise ValueError("a passage has an upper end")
    return position
