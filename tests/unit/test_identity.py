"""Two identities are of the same checkpoint or not: by their facts, and by the system behind the source."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from producer.identity import Identity, differences, identity_from_json, identity_to_json
from producer.sources.sql.origin import address, mysql_origin, postgres_origin

A, B = "aaaaaaaa-0000-0000-0000-000000000001", "bbbbbbbb-0000-0000-0000-000000000002"

FULL = Identity(
    {"app": "shop", "source": "postgresql", "database": "d", "table": "public.t", "topic": "x", "kafka cluster": "k"},
    "7301",
    ("address h:1",),
    query="q",
)


@pytest.mark.parametrize("fact", sorted(FULL.facts))
def test_each_fact_that_differs_is_named_with_both_values(fact: str) -> None:
    (found,) = differences(FULL, FULL.also(**{fact.replace(" ", "_"): "another"}))
    assert (found.what, found.recorded, found.now) == (fact, FULL.facts[fact], "another")


def test_what_one_side_does_not_know_is_not_compared() -> None:
    assert not differences(None, FULL)
    assert not differences(Identity(), FULL)
    assert not differences(FULL, Identity())
    assert not differences(FULL, FULL.also(account="7"))


def mysql(address: str, **variables: str) -> Identity:
    return mysql_origin(f"mysql://u:secret@{address}/d", "d", variables)


SYSTEMS: Mapping[str, tuple[Identity, Identity, bool]] = {
    "PostgreSQL by another address": (
        postgres_origin("postgresql://u:p@a/d", "d", "7"),
        postgres_origin("postgresql://u:p@b:5433/d", "d", "7"),
        True,
    ),
    "PostgreSQL behind the same address": (
        postgres_origin("postgresql://a/d", "d", "7"),
        postgres_origin("postgresql://a/d", "d", "8"),
        False,
    ),
    "PostgreSQL that does not say, by the same address": (
        postgres_origin("postgresql://a/d", "d", "7"),
        postgres_origin("postgresql://a/d", "d", None),
        True,
    ),
    "PostgreSQL that does not say, by another address": (
        postgres_origin("postgresql://a/d", "d", "7"),
        postgres_origin("postgresql://b/d", "d", None),
        False,
    ),
    "MySQL by the same address": (mysql("a", server_uuid=A), mysql("a", server_uuid=B), True),
    "MySQL that has moved": (mysql("a", server_uuid=A), mysql("b", server_uuid=A), True),
    "MySQL, the replica": (
        mysql("a", server_uuid=A),
        mysql("b", server_uuid=B, gtid_executed=f"{A}:1-70,\n{B}:1"),
        True,
    ),
    "MySQL, another server": (mysql("a", server_uuid=A), mysql("b", server_uuid=B, gtid_executed=f"{B}:1-70"), False),
    "MariaDB that has moved": (mysql("a", server_uid="x="), mysql("b", server_uid="x="), True),
    "MariaDB, the replica": (
        mysql("a", server_uid="x=", server_id="1", gtid_binlog_state="0-1-90"),
        mysql("b", server_uid="y=", server_id="2", gtid_slave_pos="0-1-95", gtid_binlog_state="0-1-95,0-2-96"),
        True,
    ),
    "MariaDB, another server of the same number": (
        mysql("a", server_uid="x=", server_id="1", gtid_binlog_state="0-1-90"),
        mysql("b", server_uid="y=", server_id="1", gtid_binlog_state="0-1-95"),
        False,
    ),
    "MariaDB, another server": (mysql("a", server_uid="x=", server_id="1"), mysql("b", server_uid="y="), False),
}


@pytest.mark.parametrize(("before", "now", "same"), SYSTEMS.values(), ids=SYSTEMS)
def test_a_system_is_the_same_by_its_identifier_its_names_or_its_history(
    before: Identity, now: Identity, same: bool
) -> None:
    recorded = identity_from_json(identity_to_json(before.after(None)))
    assert recorded is not None
    assert [d.what for d in differences(recorded, now)] == ([] if same else ["server"])
    assert "secret" not in str(differences(recorded, now))


def test_a_way_back_after_a_failover_is_the_same_system() -> None:
    recorded = mysql("a", server_uuid=A).after(None)
    failed_over = mysql("b", server_uuid=B, gtid_executed=f"{A}:1-70").after(recorded)
    assert not differences(failed_over, mysql("a", server_uuid=A, gtid_executed=f"{A}:1-70"))
    assert failed_over.after(failed_over) == failed_over


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://u:p@ss@H1:5432,h2:5432/d?sslmode=require", "address h1:5432,h2:5432"),
        ("postgresql:///d?host=/run/pg", "address /run/pg"),
        ("postgresql:///d", "address local"),
    ],
)
def test_an_address_has_no_user_and_no_password(url: str, told: str) -> None:
    assert address(url) == told
