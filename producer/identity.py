"""What a checkpoint belongs to: the application, the source's own identity, the table and the topic.

A source names itself by what stays the same over a failover or a new address. `facts` are compared one by one.
The system behind the source is compared by its own identifier where both sides know it (PostgreSQL), otherwise by its
`names`, of which one in common is enough; a server that has been the replica of the recorded one counts as the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

Json = object

#: The order in which differences are told.
FACTS = ("app", "source", "database", "account", "chat", "domain", "table", "topic", "kafka cluster")
SYSTEM = "server"
#: Names that a system keeps from its past: of servers that have taken turns.
_MOST_NAMES = 12


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the checkpoint and the configuration say differently."""

    what: str
    recorded: str
    now: str

    def __str__(self) -> str:
        return f"{self.what} {self.recorded!r}, now {self.now!r}"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a stream reads and writes. Names that are not known are left out, and not compared.

    `query` is the fingerprint of the query without its place (the table's name): equal where only the place differs.
    `lineage` is the name of this server in the histories of its replicas, `ancestors` are those in its own history.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    names: tuple[str, ...] = ()
    lineage: str = ""
    query: str = ""
    ancestors: frozenset[str] = field(default=frozenset(), compare=False)

    def also(self, query: str = "", **facts: str | None) -> Identity:
        """With more facts, underscores for blanks in their names; those that are None or empty are not known."""
        known = {name.replace("_", " "): fact for name, fact in facts.items() if fact}
        return replace(self, facts={**self.facts, **known}, query=query or self.query)

    def after(self, recorded: Identity | None) -> Identity:
        """What is to be recorded once `recorded` has been found to be the same: what only that knows is kept."""
        if recorded is None:
            return replace(self, ancestors=frozenset())
        names = tuple(dict.fromkeys((*self.names, *recorded.names)))[:_MOST_NAMES]
        return Identity(
            {**recorded.facts, **self.facts},
            self.system or recorded.system,
            recorded.names if set(names) == set(recorded.names) else names,
            self.lineage or recorded.lineage,
            self.query or recorded.query,
        )


def differences(recorded: Identity | None, now: Identity) -> Sequence[Difference]:
    """What both know and say differently."""
    if recorded is None:
        return ()
    order = (*FACTS, *sorted(set(recorded.facts).difference(FACTS)))
    found = [
        Difference(name, recorded.facts[name], now.facts[name])
        for name in order
        if name in recorded.facts and name in now.facts and recorded.facts[name] != now.facts[name]
    ]
    if not _same_system(recorded, now) and not any(difference.what == "source" for difference in found):
        found.append(Difference(SYSTEM, _shown(recorded), _shown(now)))
    return found


def _same_system(recorded: Identity, now: Identity) -> bool:
    if recorded.system and now.system:
        return recorded.system == now.system
    if not (recorded.names or recorded.system) or not (now.names or now.system):
        return True  # one of them does not say
    if recorded.lineage and recorded.lineage in now.ancestors:
        return True
    return not set(recorded.names).isdisjoint(now.names)


def _shown(identity: Identity) -> str:
    return identity.system or ", ".join(identity.names[:3])


def identity_to_json(identity: Identity | None) -> dict[str, Json] | None:
    """The form in which a checkpoint keeps it; the history of a server is not kept."""
    if identity is None:
        return None
    return {
        "facts": dict(identity.facts),
        "system": identity.system,
        "names": list(identity.names),
        "lineage": identity.lineage,
        "query": identity.query,
    }


def identity_from_json(value: object) -> Identity | None:
    """The inverse of `identity_to_json`; None for a checkpoint that has none; ValueError for anything else."""
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("facts"), dict):
        raise ValueError("not the identity of a checkpoint")
    return Identity(
        {str(name): str(fact) for name, fact in value["facts"].items()},
        str(value.get("system", "")),
        tuple(str(name) for name in value.get("names", ())),
        str(value.get("lineage", "")),
        str(value.get("query", "")),
    )
