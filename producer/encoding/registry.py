"""Owns the client of a Confluent schema registry, and of those that speak its protocol (Apicurio, Karapace).

Protocol: https://docs.confluent.io/platform/current/schema-registry/develop/api.html. Requests are made once: who
starts a stream repeats it after a TransientError.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any
from urllib.parse import quote

import httpx

from producer.config import RegistryConfig
from producer.encoding.compatibility import full_name, misreadings, reading_problems
from producer.encoding.names import KnownNames
from producer.errors import AuthenticationError, ConfigError, SchemaIncompatibleError, SinkUnavailableError
from producer.urls import parse

Json = Any
_MISSING = frozenset({40401, 40402, 40403})  # no such subject, version, schema; some give the first for any of them
_REQUESTS_AT_ONCE = 16
_REGISTER = "producer schema register CONFIG"


def framing_prefix(schema_id: int) -> bytes:
    """The five bytes before each Avro datum: magic 0, then the schema's id, big-endian."""
    return b"\x00" + schema_id.to_bytes(4, "big")


class RegistryClient:
    """One registry. All methods raise ProducerErrors, and wait no longer than ``timeout_s`` a request."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        what = "schema_registry.url is not an http or https URL"
        parts = parse(config.url, what, example="such as http://localhost:8081")
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ConfigError(what, hint="such as http://localhost:8081")
        #: without credentials, as it may be shown
        self.url = f"{parts.scheme}://{parts.authority}{parts.path.rstrip('/')}"
        username = config.username if config.username is not None else parts.user
        password = config.password.get_secret_value() if config.password else parts.password or ""
        self._auth = httpx.BasicAuth(username, password) if username else None
        self._client: httpx.AsyncClient | None = None
        self._prefixes: dict[tuple[str, str], bytes] = {}  # by subject and schema
        self._versions: dict[tuple[str, int], Json] = {}  # by subject and number; they never change

    async def start(self) -> None:
        """Proves that a registry is there and takes the credentials. Idempotent."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                base_url=self.url,
                auth=self._auth,
                timeout=self._config.timeout_s,
                verify=_ssl_context(self._config) if self.url.startswith("https") else False,
                headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
            )
        status, types = await self._request("GET", "/schemas/types")
        if status != 200 or not isinstance(types, list) or "AVRO" not in types:
            raise ConfigError(
                f"schema_registry.url: {self.url} does not answer as a schema registry",
                hint="give the base URL; with Apicurio it ends in /apis/ccompat/v7",
            )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def subject(self, topic: str, schema: Json, *, is_key: bool) -> str:
        """The subject by the configured strategy (TopicName, RecordName, TopicRecordName)."""
        if self._config.subject_strategy == "topic_name":
            return f"{topic}-{'key' if is_key else 'value'}"
        name = full_name(schema)
        if not name:
            raise ConfigError(
                f"schema_registry.subject_strategy {self._config.subject_strategy} needs a named type, and the "
                f"{'key' if is_key else 'value'} schema of topic {topic!r} has no name",
                hint="use topic_name",
            )
        return name if self._config.subject_strategy == "record_name" else f"{topic}-{name}"

    async def register(self, topic: str, schema: Json, *, is_key: bool, create: bool | None = None) -> bytes:
        """The framing prefix of the schema, which is registered if need be.

        `create` (default: ``auto_register``) False only looks it up. SchemaIncompatibleError where the registry
        refuses it, naming the field, or does not hold it.
        """
        known = (self.subject(topic, schema, is_key=is_key), json.dumps(schema))
        if known not in self._prefixes:
            self._prefixes[known] = framing_prefix(await self._schema_id(known[0], schema, create))
        return self._prefixes[known]

    async def _schema_id(self, subject: str, schema: Json, create: bool | None) -> int:
        create = self._config.auto_register if create is None else create
        path = f"/subjects/{quote(subject, safe='')}"
        status, answer = await self._request("POST", path, _body(schema))
        if create and _code(answer) in _MISSING:
            if misread := await self._misread(subject, schema):
                raise SchemaIncompatibleError(
                    f"readers of the new schema of subject {subject!r} would misread what has been written: "
                    + "; ".join(misread),
                    hint="leave the change out, cast the column, or write to another topic; a schema that is in the "
                    "registry already is taken",
                )
            status, answer = await self._request("POST", f"{path}/versions", _body(schema))
        if status == 200 and isinstance(answer, dict) and isinstance(answer.get("id"), int):
            return int(answer["id"])
        if not create and _code(answer) in _MISSING:
            raise SchemaIncompatibleError(
                f"subject {subject!r} at {self.url} does not hold this schema, and auto_register is off",
                hint=f"register it with: {_REGISTER}",
            )
        if status in (409, 422):
            problems = await self._problems(subject, schema, answer)
            raise SchemaIncompatibleError(
                f"the registry at {self.url} refuses the new schema of subject {subject!r}: {'; '.join(problems)}",
                hint="give the field a default, leave the change out, or set another compatibility for the subject",
            )
        raise self._unexpected(f"subject {subject!r}", status, answer)

    async def schema(self, schema_id: int) -> Json | None:
        """The schema with that id as parsed JSON; None where the registry has none."""
        status, answer = await self._request("GET", f"/schemas/ids/{schema_id}")
        if status == 200 and isinstance(answer, dict) and isinstance(answer.get("schema"), str):
            return json.loads(answer["schema"])
        return None

    async def known_names(self, topic: str, key: Json, value: Json) -> tuple[KnownNames, KnownNames]:
        """See `producer.parts.PastSchemas`: of all versions of the subjects that have the schema's name."""
        in_key = KnownNames() if key is None else await self._known_names(topic, key, is_key=True)
        return in_key, await self._known_names(topic, value, is_key=False)

    async def _known_names(self, topic: str, schema: Json, *, is_key: bool) -> KnownNames:
        subject = self.subject(topic, schema, is_key=is_key)
        path = f"/subjects/{quote(subject, safe='')}/versions"
        status, numbers = await self._request("GET", path)
        if status == 404:
            return KnownNames()
        if status != 200 or not isinstance(numbers, list):
            raise self._unexpected(f"subject {subject!r}", status, numbers)
        new = [number for number in numbers if (subject, number) not in self._versions]
        for at in range(0, len(new), _REQUESTS_AT_ONCE):
            some = new[at : at + _REQUESTS_AT_ONCE]
            found = await asyncio.gather(*(self._version(f"{path}/{number}") for number in some))
            self._versions |= {(subject, number): old for number, old in zip(some, found, strict=True)}
        versions = [self._versions[subject, number] for number in sorted(numbers)]
        return KnownNames().then(old for old in versions if full_name(old) == full_name(schema))

    async def check(self, topic: str, schema: Json, *, is_key: bool) -> list[str]:
        """Why the schema may not become the subject's next version, a line a field; empty where it may."""
        subject = self.subject(topic, schema, is_key=is_key)
        path = f"/compatibility/subjects/{quote(subject, safe='')}/versions/latest?verbose=true"
        status, answer = await self._request("POST", path, _body(schema))
        if status == 404:  # the subject's first version
            return []
        if status == 200 and isinstance(answer, dict) and isinstance(answer.get("is_compatible"), bool):
            if not answer["is_compatible"]:
                return await self._problems(subject, schema, answer)
            return await self._misread(subject, schema)
        if status == 422:
            return await self._problems(subject, schema, answer)
        raise self._unexpected(f"subject {subject!r}", status, answer)

    async def _problems(self, subject: str, schema: Json, answer: Json) -> list[str]:
        """Our own comparison with the newest version, in the direction that the subject asks for; where that finds
        nothing (an older version is in the way, or the schema is not valid), what the registry says."""
        quoted = quote(subject, safe="")
        old = await self._newest(quoted)
        if old is not None:
            status, level = await self._request("GET", f"/config/{quoted}?defaultToGlobal=true")
            wanted = str(level.get("compatibilityLevel", "")) if status == 200 and isinstance(level, dict) else ""
            found = [] if wanted.startswith("FORWARD") else reading_problems(schema, old)
            if wanted.startswith(("FORWARD", "FULL")):
                found += [f"{line}, for readers of the old schema" for line in reading_problems(old, schema)]
            if found:
                return found
        return [_message(answer)]

    async def _misread(self, subject: str, schema: Json) -> list[str]:
        """What registries let pass, for many do not compare logical types."""
        old = await self._newest(quote(subject, safe=""))
        return [] if old is None else misreadings(schema, old)

    async def _newest(self, quoted: str) -> Json | None:
        """A subject's newest schema; None where it has none, or none of Avro."""
        return await self._version(f"/subjects/{quoted}/versions/latest")

    async def _version(self, path: str) -> Json | None:
        status, version = await self._request("GET", path)
        found = status == 200 and isinstance(version, dict) and version.get("schemaType", "AVRO") == "AVRO"
        return json.loads(version["schema"]) if found else None

    def _unexpected(self, what: str, status: int, answer: Json) -> ConfigError:
        return ConfigError(
            f"schema_registry.url: {self.url} answered {status} for {what}: {_message(answer)}",
            hint="give the base URL of a schema registry, and check its mode (READONLY?)",
        )

    async def _request(self, method: str, path: str, body: Json = None) -> tuple[int, Json]:
        """Status and JSON of an answer that means something; errors of the connection and refusals are raised."""
        assert self._client is not None, "start() comes first"
        try:
            response = await self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if response.status_code in (401, 403):
            raise AuthenticationError(
                f"the registry at {self.url} refused the credentials ({response.status_code})",
                hint="check schema_registry.username and password, and the rights on the subject",
            )
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise SinkUnavailableError(f"the registry at {self.url} answered {response.status_code}")
        try:
            return response.status_code, response.json()
        except ValueError:
            return response.status_code, None

    def _unreachable(self, error: httpx.TransportError) -> SinkUnavailableError | AuthenticationError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError):
                return AuthenticationError(
                    f"TLS with the registry at {self.url} failed: {cause.reason or 'unknown reason'}",
                    hint="check schema_registry.ssl_cafile, ssl_certfile and ssl_keyfile",
                )
            cause = cause.__cause__ or cause.__context__
        why = "no answer in time" if isinstance(error, httpx.TimeoutException) else "it cannot be reached"
        return SinkUnavailableError(
            f"the registry at {self.url}: {why}", hint="is it up, and schema_registry.url right?"
        )


def _ssl_context(config: RegistryConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ssl_cafile)
        if config.ssl_certfile is not None:
            context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"schema_registry.ssl_cafile, ssl_certfile or ssl_keyfile cannot be loaded: {error.strerror or error}",
            hint="give the paths of readable PEM files",
        ) from None
    return context


def _body(schema: Json) -> Json:
    return {"schema": json.dumps(schema, separators=(",", ":"))}


def _code(answer: Json) -> int:
    return int(answer.get("error_code", 0)) if isinstance(answer, dict) else 0


def _message(answer: Json) -> str:
    """The registry's own words, on one line."""
    if not isinstance(answer, dict):
        return "no reason given"
    text = answer.get("messages") or answer.get("reason") or answer.get("message") or "no reason given"
    return " ".join(("; ".join(map(str, text)) if isinstance(text, list) else str(text)).split())[:500]
