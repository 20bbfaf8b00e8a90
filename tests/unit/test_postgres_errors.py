"""What becomes of PostgreSQL's errors: each class of SQLSTATE has its own answer, and where a server has answered
nobody is asked whether it is up."""

from __future__ import annotations

import pytest

from producer.errors import (
    AuthenticationError,
    ConfigError,
    EncodeError,
    PermanentError,
    ProducerError,
    SourceUnavailableError,
    TransientError,
)
from producer.postgres_urls import read
from producer.sources.sql.libpq import LibpqError
from producer.sources.sql.postgres_errors import translate

URL = read("postgresql://reader:hunter2@db:5432/shop?sslpassword=s3cr3t", "the url")
UP = "is the server up"

#: A SQLSTATE, what it becomes, and a word of the hint.
STATES: list[tuple[str, type[ProducerError], str]] = [
    ("08006", SourceUnavailableError, "pooler"),
    ("0A000", PermanentError, ""),
    ("21000", EncodeError, ""),
    ("22003", EncodeError, ""),
    ("22008", EncodeError, ""),
    ("22012", EncodeError, ""),
    ("22021", EncodeError, ""),
    ("22P02", EncodeError, ""),
    ("22P05", EncodeError, ""),
    ("23514", EncodeError, ""),
    ("25006", PermanentError, "read-only"),
    ("25P02", PermanentError, ""),
    ("25P03", SourceUnavailableError, "idle_in_transaction_session_timeout"),
    ("28000", AuthenticationError, "url"),
    ("28P01", AuthenticationError, "url"),
    ("38000", EncodeError, ""),
    ("3D000", ConfigError, "database"),
    ("3F000", ConfigError, ""),
    ("40001", TransientError, "hot_standby_feedback"),
    ("40P01", TransientError, ""),
    ("42501", AuthenticationError, "grant SELECT"),
    ("42601", ConfigError, ""),
    ("42703", ConfigError, ""),
    ("42P01", ConfigError, ""),
    ("53000", SourceUnavailableError, "short of"),
    ("53100", SourceUnavailableError, "disk"),
    ("53200", SourceUnavailableError, "memory"),
    ("53300", SourceUnavailableError, "max_connections"),
    ("54000", EncodeError, ""),
    ("54001", PermanentError, ""),
    ("55000", TransientError, ""),
    ("55P03", TransientError, ""),
    ("57014", TransientError, "statement_timeout_s"),
    ("57P01", SourceUnavailableError, "stopped"),
    ("57P02", SourceUnavailableError, "crashed"),
    ("57P03", SourceUnavailableError, "starting"),
    ("57P05", SourceUnavailableError, "idle_session_timeout"),
    ("58030", SourceUnavailableError, "log"),
    ("72000", TransientError, ""),
    ("F0000", SourceUnavailableError, "log"),
    ("HV00N", SourceUnavailableError, "foreign server"),
    ("P0001", EncodeError, ""),
    ("XX000", SourceUnavailableError, "log"),
    ("XX001", EncodeError, ""),
    ("XX002", PermanentError, "REINDEX"),
    ("99999", PermanentError, ""),
]


@pytest.mark.parametrize(("state", "expected", "hint"), STATES)
def test_each_sqlstate_has_its_own_answer(state: str, expected: type[ProducerError], hint: str) -> None:
    error = translate(LibpqError("ERROR:  it says so with hunter2 and s3cr3t\nDETAIL: more", state), URL)
    assert type(error) is expected
    assert hint in error.hint
    assert UP not in error.hint
    assert "it says so with *** and ***" in error.message
    assert expected is EncodeError or "PostgreSQL at db:5432" in error.message


def test_a_value_that_is_too_large_for_the_server_is_a_value_and_no_failure_of_the_server() -> None:
    assert (
        type(translate(LibpqError("ERROR:  invalid memory alloc request size 2000000000", "XX000"), URL)) is EncodeError
    )


#: What libpq says where no SQLSTATE comes, what it becomes, and a word of the hint.
FATAL = 'connection to server at "db" (10.0.0.1), port 5432 failed: FATAL:  '
WORDS: list[tuple[str, type[ProducerError], str]] = [
    (FATAL + 'password authentication failed for user "reader"', AuthenticationError, "url"),
    (FATAL + 'role "reader" does not exist', AuthenticationError, "url"),
    (FATAL + 'role "reader" is not permitted to log in', AuthenticationError, "url"),
    (FATAL + 'no pg_hba.conf entry for host "10.0.0.2"', AuthenticationError, "url"),
    ("connection to server failed: fe_sendauth: no password supplied", AuthenticationError, "url"),
    ("connection to server failed: SSL error: certificate verify failed", AuthenticationError, "url"),
    (FATAL + 'database "shop" does not exist', ConfigError, "database"),
    (FATAL + 'permission denied for database "shop"', AuthenticationError, "grant"),
    (FATAL + "sorry, too many clients already", SourceUnavailableError, "max_connections"),
    (FATAL + 'too many connections for role "reader"', SourceUnavailableError, "max_connections"),
    (FATAL + "remaining connection slots are reserved for superusers", SourceUnavailableError, "max_connections"),
    (FATAL + "the database system is starting up", SourceUnavailableError, "starting"),
    (FATAL + "the database system is not yet accepting connections", SourceUnavailableError, "starting"),
    (FATAL + 'database "shop" is not currently accepting connections', SourceUnavailableError, "starting"),
    (FATAL + "something else", SourceUnavailableError, ""),
    (FATAL + "conversion between UTF8 and MULE_INTERNAL is not supported", ConfigError, "encoding"),
    ("server closed the connection unexpectedly", SourceUnavailableError, ""),
    ('definition of service "x" not found', ConfigError, "url"),
    ('invalid sslmode value: "often"', ConfigError, "url"),
    ("IO: [libpq] ReadRecord failed at row 0: Array value with lower bound", EncodeError, ""),
]


@pytest.mark.parametrize(("text", "expected", "hint"), WORDS)
def test_what_a_server_says_before_there_is_a_connection_is_understood(
    text: str, expected: type[ProducerError], hint: str
) -> None:
    error = translate(LibpqError(text), URL)
    assert type(error) is expected
    assert hint in error.hint
    assert UP not in error.hint


@pytest.mark.parametrize(
    "text",
    [
        'connection to server at "db" (10.0.0.1), port 5432 failed: Connection refused',
        'could not translate host name "db" to address: Name or service not known',
        "connection to server on socket failed: No such file or directory",
        "timeout expired",
    ],
)
def test_a_server_that_does_not_answer_may_be_down(text: str) -> None:
    error = translate(LibpqError(text), URL)
    assert type(error) is SourceUnavailableError
    assert UP in error.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FATAL:  no such database: shop", ConfigError),
        ("FATAL:  no such user: reader", AuthenticationError),
        ("FATAL:  no more connections allowed (max_client_conn)", SourceUnavailableError),
        ("FATAL:  the pooler says no", SourceUnavailableError),
    ],
)
def test_a_poolers_words_count_where_its_sqlstate_is_that_of_the_protocol(
    text: str, expected: type[ProducerError]
) -> None:
    assert type(translate(LibpqError(text, "08P01"), URL)) is expected
