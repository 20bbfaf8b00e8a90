"""Owns what every user of the broker shares: aiokafka's settings from KafkaConfig, its errors as ours, and topics.

Everything here waits no longer than ``connect_timeout_s`` (to connect) or ``request_timeout_s`` (to be answered).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka import errors as ke
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from producer.config import KafkaConfig
from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    ConfigError,
    PermanentError,
    ProducerError,
    RecordTooLargeError,
    SinkUnavailableError,
)

_AUTHENTICATION = (
    ke.AuthenticationFailedError,
    ke.AuthenticationMethodNotSupported,
    ke.SaslAuthenticationFailed,
    ke.UnsupportedSaslMechanismError,
    ke.IllegalSaslStateError,
)
_FENCED = (ke.ProducerFenced, ke.InvalidProducerEpoch, ke.TransactionCoordinatorFenced)
#: Errors after which a new producer, begun from the checkpoint, can go on. aiokafka marks some others as retriable.
_RECOVERABLE = (
    TimeoutError,
    OSError,
    ke.KafkaTimeoutError,
    ke.KafkaUnavailableError,
    ke.BrokerNotAvailableError,
    ke.CoordinatorNotAvailableError,
    ke.CorruptRecordException,
    ke.OutOfOrderSequenceNumber,
    ke.UnknownProducerId,
    ke.InvalidProducerIdMapping,
    ke.InvalidTxnState,
    ke.ConcurrentTransactions,
    ke.ProducerClosed,
    ke.UnknownTopicOrPartitionError,
)


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka is untyped
    """The access token of OAUTHBEARER; one in a file is read for each connection, since somebody renews it there."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config

    async def token(self) -> str:
        if self._config.sasl_token_file is not None:
            return (await asyncio.to_thread(Path(self._config.sasl_token_file).read_text)).strip()
        assert self._config.sasl_password is not None
        return self._config.sasl_password.get_secret_value()


def _ssl_context(config: KafkaConfig) -> ssl.SSLContext | None:
    if not config.security_protocol.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=config.ssl_cafile)
        context.check_hostname = config.ssl_check_hostname
        if config.ssl_certfile is not None:
            password = config.ssl_password.get_secret_value() if config.ssl_password else None
            context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password)
    except OSError as error:  # ssl.SSLError is one: a file that is missing, not PEM, or locked by another password
        raise ConfigError(
            f"kafka.ssl_cafile, ssl_certfile or ssl_keyfile cannot be loaded: {error.strerror or error}",
            hint="give the paths of readable PEM files, and ssl_password if the key is encrypted",
        ) from None
    return context


def client_options(config: KafkaConfig) -> dict[str, Any]:
    """The keyword arguments that aiokafka's producer, consumer and admin client have in common."""
    options: dict[str, Any] = {
        "bootstrap_servers": config.bootstrap_servers,
        "client_id": config.client_id,
        "request_timeout_ms": int(config.request_timeout_s * 1000),
        "security_protocol": config.security_protocol,
        "ssl_context": _ssl_context(config),
    }
    if not config.security_protocol.startswith("SASL"):
        return options
    password = config.sasl_password.get_secret_value() if config.sasl_password else None
    if config.sasl_mechanism == "OAUTHBEARER":
        if password is None and config.sasl_token_file is None:
            raise ConfigError(
                "kafka.sasl_token_file and sasl_password are missing", hint="OAUTHBEARER takes the access token there"
            )
        return options | {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": _Token(config)}
    if config.sasl_username is None or password is None:
        raise ConfigError(
            "kafka.sasl_username or kafka.sasl_password is missing",
            hint=f"both are needed with security_protocol {config.security_protocol} and {config.sasl_mechanism}",
        )
    return options | {
        "sasl_mechanism": config.sasl_mechanism,
        "sasl_plain_username": config.sasl_username,
        "sasl_plain_password": password,
    }


def translate(error: BaseException, config: KafkaConfig, *, topic: str = "", doing: str = "") -> ProducerError:
    """aiokafka's (or asyncio's) error as one of ours. `doing` says what was tried, such as ``write``."""
    servers = config.bootstrap_servers
    where = f" topic {topic!r}" if topic else ""
    what = f"Kafka at {servers}: could not {doing}{where}" if doing else f"Kafka at {servers}{where}"
    match error:
        case ProducerError():
            return error
        case ke.KafkaError(__cause__=Exception() as cause) if type(error) is ke.KafkaError:
            # What ended aiokafka's sender, in a wrapping that says nothing. An error that is not of Kafka is one of
            # its own states after a break: the next producer begins without it.
            known = isinstance(cause, ke.KafkaError | OSError | TimeoutError)
            return translate(cause if known else TimeoutError(), config, topic=topic, doing=doing)
        case ke.TopicAuthorizationFailedError():
            return AuthenticationError(
                f"{what}: not authorised",
                hint="grant Describe, Write and, to have topics created, Create",
            )
        case ke.TransactionalIdAuthorizationFailed():
            return AuthenticationError(
                f"{what}: not authorised for its transactional id", hint="grant Write and Describe on TransactionalId"
            )
        case ke.ClusterAuthorizationFailedError() | ke.GroupAuthorizationFailedError():
            return AuthenticationError(
                f"{what}: not authorised", hint="grant Write on the topic, or IdempotentWrite on the cluster"
            )
        case _ if isinstance(error, _AUTHENTICATION):
            return AuthenticationError(
                f"{what}: the credentials were refused",
                hint="check kafka.sasl_mechanism, sasl_username and sasl_password",
            )
        case ssl.SSLError():
            return AuthenticationError(
                f"{what}: TLS failed: {error.reason or error.strerror or type(error).__name__}",
                hint="check kafka.ssl_cafile, and that the broker's listener speaks TLS",
            )
        case ke.MessageSizeTooLargeError() | ke.RecordListTooLargeError():
            return RecordTooLargeError(
                f"{what}: a batch is larger than the topic takes",
                hint="raise the topic's max.message.bytes, or lower kafka.max_request_size",
            )
        case _ if isinstance(error, _FENCED):
            return CheckpointConflictError(
                f"{what}: a newer runner has taken over", hint="stop one of the two; each stream has one runner"
            )
        case ke.InvalidTimestampError():
            return PermanentError(
                f"{what}: the broker takes no records of this time",
                hint="set this machine's clock, or the topic's message.timestamp.before.max.ms and after.max.ms",
            )
        case ke.InvalidTopicError():
            return ConfigError(f"{what}: the topic's name is not valid", hint="letters, digits, '.', '_' and '-' only")
        case ke.UnsupportedVersionError() | ke.IncompatibleBrokerVersion() | ke.UnrecognizedBrokerVersion():
            return ConfigError(f"{what}: the broker is too old", hint="Kafka 2.1 or newer is needed")
        case _ if isinstance(error, _RECOVERABLE) or getattr(error, "retriable", False):
            hint = "is the broker up and reachable?"
            if config.sasl_mechanism == "OAUTHBEARER":  # aiokafka takes a refused token for a broken connection
                hint = "is the broker up and reachable, and the access token valid?"
            return SinkUnavailableError(f"{what}: {_reason(error)}", hint=hint)
        case _:
            return PermanentError(f"{what}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    match error:
        case TimeoutError():
            return "no answer in time"
        case ConnectionRefusedError():
            return "connection refused"
        case OSError():
            return error.strerror or type(error).__name__
        case ke.BrokerResponseError():
            return f"{type(error).__name__} (Kafka error {error.errno})"
        case _:
            return type(error).__name__


class _Startable(Protocol):
    async def start(self) -> None: ...


async def connect(
    client: _Startable, stop: Callable[[], Coroutine[Any, Any, None]], config: KafkaConfig, *, topic: str = ""
) -> None:
    """Starts an aiokafka client within ``connect_timeout_s``, or stops it and raises one of our errors.

    `topic` is what a producer is for: the broker refuses one by its rights on all topics, and names none.
    aiokafka only says that it could not bootstrap, so the first server is asked once more for the cause.
    """
    starting = asyncio.ensure_future(client.start())
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            await asyncio.shield(starting)
    except BaseException as error:
        # A start that is cut off in its middle leaves its socket open: it gets a moment to end by itself.
        await give_up(lambda: _ended(starting), 1.0)
        await give_up(stop, 1.0)
        cause = (await _cause(config) or error) if isinstance(error, ke.KafkaConnectionError) else error
        if isinstance(cause, ke.KafkaError | OSError):  # TimeoutError is an OSError
            raise translate(cause, config, topic=topic, doing="write to" if topic else "connect") from None
        raise


async def _ended(task: asyncio.Future[None]) -> None:
    with contextlib.suppress(Exception):
        await task


async def _cause(config: KafkaConfig) -> Exception | None:
    options = client_options(config)
    options["request_timeout_ms"] = int(config.connect_timeout_s * 1000)
    host, port, _ = collect_hosts(options.pop("bootstrap_servers"))[0]
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            connection = await create_conn(host, port, **options)
    except (ke.KafkaError, OSError) as error:
        return error
    connection.close()
    return None


async def give_up(stop: Callable[[], Coroutine[Any, Any, None]], deadline_s: float) -> None:
    """Runs an aiokafka ``stop()`` for at most the deadline: with the broker gone it may hang (aiokafka #1101).

    How it ends does not matter any more: all that hung on the client has been told already.
    """
    task = asyncio.ensure_future(stop())
    try:
        await asyncio.wait({task}, timeout=deadline_s)
    finally:
        task.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


async def abandon(producer: AIOKafkaProducer, deadline_s: float = 2.0) -> None:
    """Stops a producer that nobody waits for any more: what it still has fails at once, and quietly."""
    # Cancelled first: a request on its way could queue failed batches again.
    producer._sender.sender_task.cancel()
    accumulator = producer._message_accumulator
    batches = [*accumulator._pending_batches, *(batch for queue in accumulator._batches.values() for batch in queue)]
    accumulator.fail_all(ke.ProducerClosed())
    await give_up(producer.stop, deadline_s)
    await give_up(producer.client.close, deadline_s)  # stop() may not have come to that
    # asyncio would print the tracebacks of those that nobody looked at.
    told = [future for batch in batches for future in (batch.future, batch._drain_waiter)]
    if producer._txn_manager is not None:
        told.append(producer._txn_manager.wait_for_transaction_end())
    for future in told:
        if future is not None and future.done() and not future.cancelled():
            future.exception()


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What the broker says of a topic; `max_message_bytes` bounds one record batch, as compressed."""

    name: str
    partitions: int
    max_message_bytes: int


#: Kafka's own default of max.message.bytes, for where the topic's configuration may not be read.
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588


@asynccontextmanager
async def admin(config: KafkaConfig) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client that is closed again; aiokafka's errors come out as ours."""
    client = AIOKafkaAdminClient(**client_options(config))
    await connect(client, client.close, config)
    try:
        yield client
    except (ke.KafkaError, OSError) as error:
        raise translate(error, config, doing="administer topics") from None
    finally:
        await give_up(client.close, 1.0)


Administered = Callable[[KafkaConfig], AbstractAsyncContextManager[AIOKafkaAdminClient]]


@dataclass(slots=True)
class _Held:
    opening: asyncio.Task[AIOKafkaAdminClient]
    close: AsyncExitStack
    users: int = 0


class SharedAdmin:
    """As `admin`, but those who use it at the same time have one client between them, until one meets an error."""

    def __init__(self) -> None:
        self._held: _Held | None = None

    @asynccontextmanager
    async def __call__(self, config: KafkaConfig) -> AsyncIterator[AIOKafkaAdminClient]:
        if self._held is None:
            close = AsyncExitStack()
            self._held = _Held(asyncio.create_task(close.enter_async_context(admin(config))), close)
        held = self._held
        held.users += 1
        try:
            yield await asyncio.shield(held.opening)
        except BaseException as error:
            self._leave_to_others(held)
            if isinstance(error, ke.KafkaError | OSError):
                raise translate(error, config, doing="administer topics") from None
            raise
        finally:
            held.users -= 1
            if not held.users:
                self._leave_to_others(held)
                held.opening.cancel()
                await asyncio.wait({held.opening})
                await held.close.aclose()

    def _leave_to_others(self, held: _Held) -> None:
        """Who comes now opens a client of its own."""
        if self._held is held:
            self._held = None


async def ensure_topic(
    config: KafkaConfig,
    name: str,
    *,
    partitions: int | None = None,
    replication_factor: int | None = None,
    topic_config: Mapping[str, str] | None = None,
    administered: Administered = admin,
) -> TopicInfo:
    """The topic, made if it is not there. ``None`` leaves a number to the broker's defaults.

    A topic that is there is left as it is; ConfigError if it has another number of partitions than was asked for,
    since a key's partition would then not be where the configuration says.
    """
    async with administered(config) as client, asyncio.timeout(config.request_timeout_s):
        found = await _partitions(client, config, name)
        if found is None:
            await _create(client, config, name, partitions, replication_factor, topic_config or {})
            found = await _partitions_when_led(client, name)
        _refuse_other_number(name, found, partitions)
        values = await _configs(client, ConfigResourceType.TOPIC, name, "max.message.bytes")
        return TopicInfo(name, found, int(values.get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES)))


async def check_topic(
    config: KafkaConfig,
    name: str,
    *,
    partitions: int | None = None,
    replication_factor: int | None = None,
    topic_config: Mapping[str, str] | None = None,
) -> int | None:
    """The partitions of the topic as `ensure_topic` finds it, or None where that makes it; errors as of that, but
    nothing is made."""
    async with admin(config) as client, asyncio.timeout(config.request_timeout_s):
        found = await _partitions(client, config, name)
        if found is None:
            await _create(client, config, name, partitions, replication_factor, topic_config or {}, only_check=True)
        else:
            _refuse_other_number(name, found, partitions)
        return found


def _refuse_other_number(name: str, found: int, wanted: int | None) -> None:
    if wanted is not None and found != wanted:
        raise ConfigError(
            f"topic {name!r} has {found} partitions, not {wanted}",
            hint=f"set partitions: {found}, leave it out, or choose another topic",
        )


async def cluster_id(config: KafkaConfig) -> str:
    """The id that the brokers of a cluster share; '' where they have none."""
    async with admin(config) as client, asyncio.timeout(config.request_timeout_s):
        return await cluster_id_of(client)


async def cluster_id_of(client: AIOKafkaAdminClient) -> str:
    """As `cluster_id`, by a client that is connected."""
    response = await client._send_request(MetadataRequest([], allow_auto_topic_creation=False))
    return str(response.to_object().get("cluster_id") or "")


async def topic_partitions(config: KafkaConfig, name: str) -> int | None:
    """How many partitions a topic has; None where it is not there (and it is not made by asking)."""
    async with admin(config) as client, asyncio.timeout(config.request_timeout_s):
        return await _partitions(client, config, name)


async def _topic(client: AIOKafkaAdminClient, name: str) -> dict[str, Any]:
    # describe_topics() would have the broker make the topic by its own defaults.
    response = await client._send_request(MetadataRequest([name], allow_auto_topic_creation=False))
    (topic,) = response.to_object()["topics"]
    return dict(topic)


async def _partitions(client: AIOKafkaAdminClient, config: KafkaConfig, name: str) -> int | None:
    topic = await _topic(client, name)
    error = ke.for_code(topic["error_code"])
    if error is ke.UnknownTopicOrPartitionError:
        return None
    if error is not ke.NoError and error is not ke.LeaderNotAvailableError:
        raise translate(error(), config, topic=name, doing="look up")
    return len(topic["partitions"])


async def _partitions_when_led(client: AIOKafkaAdminClient, name: str) -> int:
    while True:  # within ensure_topic's deadline: metadata follow a creation by some milliseconds
        topic = await _topic(client, name)
        partitions = topic["partitions"]
        if topic["error_code"] == 0 and partitions and all(p["leader"] >= 0 for p in partitions):
            return len(partitions)
        await asyncio.sleep(0.02)


async def _create(
    client: AIOKafkaAdminClient,
    config: KafkaConfig,
    name: str,
    partitions: int | None,
    replication_factor: int | None,
    topic_config: Mapping[str, str],
    *,
    only_check: bool = False,
) -> None:
    if partitions is None or replication_factor is None:
        # As they were told at its start: describe_cluster() would ask for all topics as well.
        known = [broker.nodeId for broker in client._client.cluster.brokers()]
        broker = str(known[0] if known else (await client.describe_cluster())["brokers"][0]["node_id"])
        defaults = await _configs(
            client, ConfigResourceType.BROKER, broker, "num.partitions", "default.replication.factor"
        )
        partitions = partitions or int(defaults.get("num.partitions", 1))
        replication_factor = replication_factor or int(defaults.get("default.replication.factor", 1))
    new = NewTopic(name, partitions, replication_factor, topic_configs=dict(topic_config))
    response = await client.create_topics([new], validate_only=only_check)
    for _, code, *message in response.topic_errors:
        error = ke.for_code(code)
        if error is ke.NoError or error is ke.TopicAlreadyExistsError:  # another runner was quicker
            continue
        if error in (ke.InvalidReplicationFactorError, ke.InvalidConfigurationError, ke.PolicyViolationError):
            text = message[0] if message and message[0] else error.__name__
            raise ConfigError(f"topic {name!r} cannot be created: {text}")
        raise translate(error(), config, topic=name, doing="create")


async def _configs(client: AIOKafkaAdminClient, kind: ConfigResourceType, name: str, *keys: str) -> dict[str, str]:
    """The named settings, as far as they may be read."""
    (response,) = await client.describe_configs([ConfigResource(kind, name, dict.fromkeys(keys))])
    return {entry[0]: entry[1] for resource in response.resources for entry in resource[4] if entry[1] is not None}
