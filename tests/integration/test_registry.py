"""Owns the claims about the schema registry's client, against a real registry, and a scripted one for its faults."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from producer.config import RegistryConfig
from producer.encoding.registry import RegistryClient, framing_prefix
from producer.errors import AuthenticationError, ConfigError, SchemaIncompatibleError, SinkUnavailableError

Open = Callable[..., Awaitable[RegistryClient]]


def schema(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "Row", "namespace": "shop", "fields": list(fields)}


A = {"name": "a", "type": "long"}
B = {"name": "b", "type": "string"}
B_OR = {"name": "b", "type": "string", "default": ""}


@pytest.fixture
async def open_client(registry_url: str) -> AsyncIterator[Open]:
    opened = []

    async def open_one(url: str = registry_url, **settings: Any) -> RegistryClient:
        client = RegistryClient(RegistryConfig(url=url, **settings))
        opened.append(client)
        await client.start()
        return client

    yield open_one
    for client in opened:
        await client.close()


async def test_a_schema_is_registered_once_and_found_again(open_client: Open, unique: str) -> None:
    client = await open_client()
    prefix = await client.register(unique, schema(A), is_key=False)

    assert prefix[0] == 0
    assert len(prefix) == 5
    assert await client.register(unique, schema(A), is_key=False) == prefix
    looking = await open_client(auto_register=False)
    assert await looking.register(unique, schema(A), is_key=False) == prefix


async def test_a_compatible_change_is_a_new_version_with_an_id_of_its_own(open_client: Open, unique: str) -> None:
    client = await open_client()
    first = await client.register(unique, schema(A), is_key=False)

    assert await client.check(unique, schema(A, B_OR), is_key=False) == []
    assert await client.register(unique, schema(A, B_OR), is_key=False) != first


async def test_a_refusal_names_the_field_and_the_way_out(open_client: Open, unique: str) -> None:
    client = await open_client()
    await client.register(unique, schema(A), is_key=False)
    changed = schema({"name": "a", "type": "string"}, B)

    expected = ["field 'a' was long and is now string", "field 'b' has no counterpart and no default"]
    assert await client.check(unique, changed, is_key=False) == expected
    with pytest.raises(SchemaIncompatibleError) as caught:
        await client.register(unique, changed, is_key=False)
    assert f"subject '{unique}-value': {'; '.join(expected)}" in caught.value.message
    assert "default" in caught.value.hint


async def test_a_schema_that_is_none_is_refused_in_the_registrys_words(open_client: Open, unique: str) -> None:
    client = await open_client()

    with pytest.raises(SchemaIncompatibleError, match=f"refuses the new schema of subject '{unique}-value'"):
        await client.register(unique, {"type": "recordx"}, is_key=False)


def amount(scale: int) -> dict[str, Any]:
    return {"name": "a", "type": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": scale}}


async def test_what_readers_would_take_for_another_value_is_refused_also_where_the_registry_sees_no_difference(
    open_client: Open, unique: str
) -> None:
    client = await open_client()
    await client.register(unique, schema(amount(2)), is_key=False)
    changed, expected = schema(amount(3)), "field 'a' was decimal(10, 2) and is now decimal(10, 3)"

    assert await client.check(unique, changed, is_key=False) == [expected]
    with pytest.raises(SchemaIncompatibleError, match=re.escape(expected)):
        await client.register(unique, changed, is_key=False)
    assert await client.register(unique, schema(amount(2)), is_key=False)


async def test_what_somebody_has_registered_is_taken(open_client: Open, registry_url: str, unique: str) -> None:
    client = await open_client()
    await client.register(unique, schema(amount(2)), is_key=False)
    async with httpx.AsyncClient() as somebody:
        path, body = f"{registry_url}/subjects/{unique}-value/versions", {"schema": json.dumps(schema(amount(3)))}
        (await somebody.post(path, json=body)).raise_for_status()

    assert await client.register(unique, schema(amount(3)), is_key=False)


@pytest.mark.parametrize("known", [True, False])
async def test_without_auto_register_a_missing_schema_names_the_command(
    open_client: Open, unique: str, known: bool
) -> None:
    if known:
        await (await open_client()).register(unique, schema(A), is_key=False)
    client = await open_client(auto_register=False)

    with pytest.raises(SchemaIncompatibleError, match=r"auto_register is off \(register it with: producer schema reg"):
        await client.register(unique, schema(A, B_OR), is_key=False)
    assert await client.register(unique, schema(A, B_OR), is_key=False, create=True)


async def test_a_first_version_is_compatible(open_client: Open, unique: str) -> None:
    assert await (await open_client()).check(unique, schema(A), is_key=True) == []


async def test_a_topic_with_any_character_is_a_subject_of_its_own(open_client: Open, unique: str) -> None:
    client = await open_client()
    await client.register(f"{unique} a/b?c", schema(A), is_key=False)

    with pytest.raises(SchemaIncompatibleError):
        await client.register(f"{unique} a/b?c", schema(B), is_key=False)
    await client.register(f"{unique} a", schema(B), is_key=False)


@pytest.mark.parametrize(
    ("strategy", "key", "value"),
    [
        ("topic_name", "t-key", "t-value"),
        ("record_name", "shop.Row", "shop.Row"),
        ("topic_record_name", "t-shop.Row", "t-shop.Row"),
    ],
)
def test_the_subject_follows_the_strategy(strategy: Any, key: str, value: str) -> None:
    client = RegistryClient(RegistryConfig(url="http://r", subject_strategy=strategy))

    assert client.subject("t", schema(A), is_key=True) == key
    assert client.subject("t", schema(A), is_key=False) == value


def test_a_strategy_by_record_name_refuses_a_schema_without_a_name() -> None:
    client = RegistryClient(RegistryConfig(url="http://r", subject_strategy="record_name"))

    with pytest.raises(ConfigError, match="the key schema of topic 't' has no name"):
        client.subject("t", "long", is_key=True)


def test_the_framing_prefix_is_the_magic_byte_and_the_id() -> None:
    assert framing_prefix(258) == b"\x00\x00\x00\x01\x02"


# --- faults --------------------------------------------------------------------------------------------------------


async def scripted(answer: bytes, seen: list[bytes]) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def answer(status: str, body: str = "{}") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (answer("401 Unauthorized"), AuthenticationError, "refused the credentials"),
        (answer("403 Forbidden"), AuthenticationError, "refused the credentials"),
        (answer("503 Unavailable"), SinkUnavailableError, "answered 503"),
        (answer("429 Too Many"), SinkUnavailableError, "answered 429"),
        (answer("200 OK", "<html>"), ConfigError, "does not answer as a schema registry"),
        (answer("404 Not Found"), ConfigError, "does not answer as a schema registry"),
        (b"", SinkUnavailableError, "cannot be reached"),
    ],
)
async def test_every_fault_is_an_error_that_names_the_url_and_no_password(
    open_client: Open, reply: bytes, kind: type[Exception], message: str
) -> None:
    seen: list[bytes] = []
    async with await scripted(reply, seen) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(kind, match=message) as caught:
            await open_client(f"http://reader:hunter2@127.0.0.1:{port}/sub")
    assert f"http://127.0.0.1:{port}/sub" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert b"authorization: basic cmvhzgvyomh1bnrlcji=" in seen[0].lower()


async def test_credentials_of_the_configuration_go_before_those_of_the_url(open_client: Open) -> None:
    seen: list[bytes] = []
    async with await scripted(answer("200 OK", '["AVRO"]'), seen) as server:
        port = server.sockets[0].getsockname()[1]
        await open_client(f"http://x:y@127.0.0.1:{port}", username="reader", password=SecretStr("hunter2"))
    assert b"authorization: basic cmvhzgvyomh1bnrlcji=" in seen[0].lower()


async def test_a_registry_that_is_not_there_is_named_without_credentials(open_client: Open) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(SinkUnavailableError) as caught:
            await open_client(f"http://reader:hunter2@127.0.0.1:{port}")
    assert f"the registry at http://127.0.0.1:{port}: it cannot be reached" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_registry_that_does_not_answer_is_given_up_at_the_deadline(open_client: Open) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(SinkUnavailableError, match="no answer in time"),
    ):
        await open_client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)


async def test_tls_files_that_are_not_there_are_a_configuration_error(open_client: Open) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded: No such file"):
        await open_client("https://127.0.0.1:1", ssl_cafile="/nowhere/ca.pem")


async def test_a_url_that_is_none_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="not an http or https URL"):
        RegistryClient(RegistryConfig(url="localhost:8081"))
