"""Owns checkpoints in PostgreSQL: three tables, and a commit that is one transaction with the check of its epoch.

``etl_streams`` holds a stream's fingerprint and epoch (its row outlives a reset, so that epochs only rise),
``etl_splits`` the checkpoint of each split. ``etl_checkpoints`` has a row a stream for scripts and dashboards: up to
which id all is done, how many rows, since when. It may be there already and be used by others: only rows that this
store has made are written. ``group_id`` is the stream's name where that is a number (a chat's id), else a hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import asyncpg

from producer import postgres_urls
from producer.checkpoints.progress import last_id, total_rows
from producer.config import Config, PostgresCheckpointsConfig
from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    CheckpointCorruptError,
    ConfigError,
    PermanentError,
    ProducerError,
    StoreUnavailableError,
)
from producer.identity import identity_from_json, identity_to_json
from producer.model import Checkpoint, StreamState, checkpoint_from_json, checkpoint_to_json
from producer.postgres import pin

_CONNECT_TIMEOUT_S = 10.0
_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 2.0

#: With the schema: new tables would be made in the first one of the pinned search path, which is pg_catalog.
_TABLES = """
CREATE TABLE IF NOT EXISTS {schema}.etl_checkpoints (
    group_id BIGINT PRIMARY KEY,
    last_message_id BIGINT NOT NULL,
    total_processed BIGINT DEFAULT 0,
    last_updated TIMESTAMP DEFAULT NOW(),
    created_at TIMESTAMP DEFAULT NOW()
);
CREATE INDEX IF NOT EXISTS idx_checkpoints_updated ON {schema}.etl_checkpoints(last_updated);
CREATE TABLE IF NOT EXISTS {schema}.etl_streams (
    app TEXT NOT NULL,
    stream TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    fingerprint TEXT,
    paused BOOLEAN NOT NULL DEFAULT FALSE,
    group_id BIGINT UNIQUE,
    identity JSON,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    PRIMARY KEY (app, stream)
);
ALTER TABLE {schema}.etl_streams ADD COLUMN IF NOT EXISTS identity JSON;
CREATE TABLE IF NOT EXISTS {schema}.etl_splits (
    app TEXT NOT NULL,
    stream TEXT NOT NULL,
    split TEXT NOT NULL,
    place INTEGER NOT NULL,
    checkpoint JSON NOT NULL,
    PRIMARY KEY (app, stream, split),
    FOREIGN KEY (app, stream) REFERENCES {schema}.etl_streams (app, stream) ON DELETE CASCADE
);
"""
_ALL_THERE = """
SELECT to_regclass('etl_checkpoints') IS NOT NULL AND to_regclass('etl_streams') IS NOT NULL
   AND to_regclass('etl_splits') IS NOT NULL AND EXISTS (
     SELECT FROM pg_attribute WHERE attrelid = to_regclass('etl_streams') AND attname = 'identity' AND NOT attisdropped)
"""
#: One maker at a time: CREATE TABLE IF NOT EXISTS is not safe against itself.
_MAKER_LOCK = int.from_bytes(hashlib.sha256(b"etl_checkpoints").digest()[:7], "big")
#: Where `start` makes the tables: beside those that are there, else in the first schema of the role's search path.
_SCHEMA = """
SELECT quote_ident(coalesce(
  (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE c.oid = to_regclass('etl_streams')),
  (SELECT s FROM unnest(current_schemas(false)) WITH ORDINALITY u(s, place)
   WHERE s <> 'pg_catalog' AND s NOT LIKE 'pg\\_temp%' ORDER BY place LIMIT 1)
))
"""
#: Settings and isolation do not depend on the role's, and a commit is durable, whatever its default says.
_READ = f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {pin()}"
_WRITE = f"""
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT {pin()},
 CASE WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off'
 THEN pg_catalog.set_config('synchronous_commit', 'on', true) END
"""
_CLAIM = """
INSERT INTO etl_streams (app, stream, epoch) VALUES ($1, $2, $3 + 1)
ON CONFLICT (app, stream) DO UPDATE SET epoch = GREATEST(etl_streams.epoch, $3) + 1 RETURNING epoch
"""
_UPSERT_SPLIT = """
INSERT INTO etl_splits (app, stream, split, place, checkpoint) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (app, stream, split) DO UPDATE SET checkpoint = EXCLUDED.checkpoint
"""
_UPDATE_GUIDE = """
UPDATE etl_checkpoints SET last_message_id = $2, total_processed = $3, last_updated = NOW() WHERE group_id = $1
"""


@dataclass(slots=True)
class _Claim:
    """A stream that this store may write: its splits in the order of their places, as last committed."""

    epoch: int
    splits: dict[str, Checkpoint]


class PostgresCheckpointStore:
    """The tables of one application (``app``) in the first schema of the search path; made if they are not there.

    Whether a runner is alive cannot be seen from outside: `claim` and `reset` fence it, and its next commit fails.
    StoreUnavailableError where the server does not answer within 30 s; the next call connects anew.
    """

    def __init__(self, config: Config) -> None:
        if not isinstance(config.checkpoints, PostgresCheckpointsConfig):
            raise TypeError("this store is for checkpoints of type postgres")
        key = "checkpoints.url"
        self._url = postgres_urls.for_asyncpg(postgres_urls.read(config.checkpoints.url.get_secret_value(), key), key)
        self._app = config.app
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()
        self._claims: dict[str, _Claim] = {}

    async def start(self) -> None:
        async with self._transaction("read", begin=_READ) as connection:
            if await connection.fetchval(_ALL_THERE):
                return
        async with self._transaction("make the tables") as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MAKER_LOCK)
            schema = await connection.fetchval(_SCHEMA)
            if schema is None:
                raise ConfigError(
                    "checkpoints in PostgreSQL: no schema of the role's search_path is there to make the tables in",
                    hint="ALTER ROLE ... SET search_path, or options=-csearch_path%3D... in checkpoints.url",
                )
            await connection.execute(_TABLES.format(schema=schema))

    async def close(self) -> None:
        async with self._turn:
            self._claims.clear()
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    await connection.close(timeout=_CLOSE_TIMEOUT_S)
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    connection.terminate()

    async def load(self, stream: str) -> StreamState | None:
        async with self._transaction("read", stream, begin=_READ) as connection:
            return await self._load(connection, stream)

    async def streams(self) -> Sequence[str]:
        async with self._transaction("read", begin=_READ) as connection:
            rows = await connection.fetch(
                "SELECT stream FROM etl_streams WHERE app = $1 AND fingerprint IS NOT NULL", self._app
            )
        return sorted(row["stream"] for row in rows)

    async def claim(self, stream: str, above: int = 0) -> int:
        async with self._transaction("claim", stream) as connection:
            epoch = int(await connection.fetchval(_CLAIM, self._app, stream, above))
            state = await self._load(connection, stream)
        self._claims[stream] = _Claim(epoch, {c.split.id: c for c in state.checkpoints} if state else {})
        return epoch

    async def begin(self, state: StreamState) -> None:
        stream = state.stream
        async with self._transaction("write", stream) as connection:
            await self._lock(connection, stream, state.epoch)
            await connection.execute("DELETE FROM etl_splits WHERE app = $1 AND stream = $2", self._app, stream)
            group_id = await connection.fetchval(
                "UPDATE etl_streams SET fingerprint = $3, paused = $4, identity = $5, updated_at = clock_timestamp() "
                "WHERE app = $1 AND stream = $2 RETURNING group_id",
                self._app,
                stream,
                state.fingerprint,
                state.paused,
                json.dumps(identity_to_json(state.identity)),
            )
            if group_id is None:
                await self._make_guide_row(connection, stream)
            await self._write(connection, stream, list(enumerate(state.checkpoints)), state.checkpoints)
        self._claims[stream] = _Claim(state.epoch, {c.split.id: c for c in state.checkpoints})

    async def commit(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> None:
        claim = self._claims.get(stream)
        if claim is None or claim.epoch != epoch:
            raise _taken_over(stream)
        splits = claim.splits | {c.split.id: c for c in changed}
        places = {split: place for place, split in enumerate(splits)}
        async with self._transaction("write", stream) as connection:
            if await self._lock(connection, stream, epoch) is None:
                raise CheckpointConflictError(
                    f"the checkpoint of stream {stream!r} went away while it was running", hint="start the run again"
                )
            await connection.execute(
                "UPDATE etl_streams SET updated_at = clock_timestamp() WHERE app = $1 AND stream = $2",
                self._app,
                stream,
            )
            await self._write(connection, stream, [(places[c.split.id], c) for c in changed], list(splits.values()))
        claim.splits = splits

    async def set_paused(self, stream: str, epoch: int, paused: bool) -> None:
        async with self._transaction("write", stream) as connection:
            await self._lock(connection, stream, epoch)
            await connection.execute(
                "UPDATE etl_streams SET paused = $3 WHERE app = $1 AND stream = $2", self._app, stream, paused
            )

    async def reset(self, stream: str) -> bool:
        async with self._transaction("reset", stream) as connection:
            row = await connection.fetchrow(
                "SELECT fingerprint, group_id FROM etl_streams WHERE app = $1 AND stream = $2 FOR UPDATE",
                self._app,
                stream,
            )
            if row is None or row["fingerprint"] is None:
                return False
            await connection.execute("DELETE FROM etl_splits WHERE app = $1 AND stream = $2", self._app, stream)
            await connection.execute("DELETE FROM etl_checkpoints WHERE group_id = $1", row["group_id"])
            # The row stays: a runner that is still alive is fenced by the higher epoch, now and after a new plan.
            await connection.execute(
                "UPDATE etl_streams SET epoch = epoch + 1, fingerprint = NULL, identity = NULL, paused = FALSE, "
                "group_id = NULL "
                "WHERE app = $1 AND stream = $2",
                self._app,
                stream,
            )
        self._claims.pop(stream, None)
        return True

    # --- within a transaction --------------------------------------------------------------------------------------

    async def _load(self, connection: asyncpg.Connection, stream: str) -> StreamState | None:
        row = await connection.fetchrow(
            "SELECT fingerprint, epoch, updated_at, paused, identity FROM etl_streams WHERE app = $1 AND stream = $2",
            self._app,
            stream,
        )
        if row is None or row["fingerprint"] is None:
            return None
        splits = await connection.fetch(
            "SELECT checkpoint FROM etl_splits WHERE app = $1 AND stream = $2 ORDER BY place", self._app, stream
        )
        try:
            checkpoints = tuple(checkpoint_from_json(json.loads(split["checkpoint"])) for split in splits)
            identity = identity_from_json(json.loads(row["identity"] or "null"))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointCorruptError(
                f"the checkpoint of stream {stream!r} in etl_splits cannot be read: {error!r}",
                hint=f"start the stream over with: producer checkpoint reset CONFIG {stream}",
            ) from None
        updated_at = row["updated_at"].isoformat(timespec="milliseconds")
        return StreamState(
            stream, row["fingerprint"], row["epoch"], checkpoints, updated_at, row["paused"], identity=identity
        )

    async def _lock(self, connection: asyncpg.Connection, stream: str, epoch: int) -> str | None:
        """Holds the stream's row to the end of the transaction, and returns the fingerprint that stands there."""
        row = await connection.fetchrow(
            "SELECT epoch, fingerprint FROM etl_streams WHERE app = $1 AND stream = $2 FOR UPDATE", self._app, stream
        )
        if row is not None and row["epoch"] != epoch:
            self._claims.pop(stream, None)
            raise _taken_over(stream)
        if row is None:
            raise CheckpointConflictError(
                f"the row of stream {stream!r} in etl_streams has been deleted", hint="start the run again"
            )
        fingerprint: str | None = row["fingerprint"]
        return fingerprint

    async def _make_guide_row(self, connection: asyncpg.Connection, stream: str) -> None:
        """A row of this stream's own in etl_checkpoints: one that somebody else has made is left alone."""
        for group_id in _group_ids(self._app, stream):
            made = await connection.execute(
                "INSERT INTO etl_checkpoints (group_id, last_message_id) VALUES ($1, 0) ON CONFLICT DO NOTHING",
                group_id,
            )
            if made == "INSERT 0 1":
                await connection.execute(
                    "UPDATE etl_streams SET group_id = $3 WHERE app = $1 AND stream = $2", self._app, stream, group_id
                )
                return

    async def _write(
        self,
        connection: asyncpg.Connection,
        stream: str,
        changed: Sequence[tuple[int, Checkpoint]],
        everything: Sequence[Checkpoint],
    ) -> None:
        await connection.executemany(
            _UPSERT_SPLIT,
            [(self._app, stream, c.split.id, place, json.dumps(checkpoint_to_json(c))) for place, c in changed],
        )
        group_id = await connection.fetchval(
            "SELECT group_id FROM etl_streams WHERE app = $1 AND stream = $2", self._app, stream
        )
        await connection.execute(_UPDATE_GUIDE, group_id, last_id(everything), total_rows(everything))

    # --- the connection --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _transaction(
        self, doing: str, stream: str = "", *, begin: str = _WRITE
    ) -> AsyncIterator[asyncpg.Connection]:
        """A transaction on the one connection, in turn; whatever goes wrong with it, the next one gets a new one."""
        async with self._turn:
            with _errors(doing, stream):
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        connection = await self._connected()
                        await connection.execute(begin)
                        yield connection
                        await connection.execute("COMMIT")
                except ProducerError:
                    await self._roll_back()
                    raise
                except BaseException:
                    if self._connection is not None:
                        self._connection.terminate()
                        self._connection = None
                    raise

    async def _roll_back(self) -> None:
        """After an error of ours in a transaction; a connection that cannot is not used again."""
        connection = self._connection
        if connection is None or connection.is_closed() or not connection.is_in_transaction():
            return
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await connection.execute("ROLLBACK")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._connection = None
        finally:
            if connection.is_closed() or connection.is_in_transaction():
                connection.terminate()
                self._connection = None

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            # No cache of statements: a pooler in between may give each transaction another session.
            try:
                self._connection = await asyncpg.connect(self._url, timeout=_CONNECT_TIMEOUT_S, statement_cache_size=0)
            except (ValueError, asyncpg.ClientConfigurationError):  # its text may hold a part of the URL
                raise ConfigError(
                    "checkpoints.url is not a PostgreSQL URL", hint="postgresql://user:password@host:5432/database"
                ) from None
        return self._connection


def _group_ids(app: str, stream: str) -> Iterator[int]:
    """What may name the stream in etl_checkpoints, the best first: its number, or a hash that no chat has."""
    if stream.removeprefix("-").isdecimal() and stream.isascii() and -(2**63) <= int(stream) < 2**63:
        yield int(stream)
    yield int.from_bytes(hashlib.sha256(f"{app}/{stream}".encode()).digest()[:8], "big") >> 1 | 1 << 62


def _taken_over(stream: str) -> CheckpointConflictError:
    return CheckpointConflictError(
        f"stream {stream!r} has been taken over by another runner", hint="let only one run of a stream use a database"
    )


_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a line that broke in the midst of an answer: its connection is not used again
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ReadOnlySQLTransactionError,  # a replica, until a failover is through
    asyncpg.FeatureNotSupportedError,  # the same, said of a transaction that is to write
    asyncpg.PostgresSystemError,
    OSError,  # TimeoutError is one
)


@contextmanager
def _errors(doing: str, stream: str) -> Iterator[None]:
    """asyncpg's errors as ours. Their texts come from the server, which does not know the URL or its password."""
    what = f"checkpoints in PostgreSQL: could not {doing}" + (f" stream {stream!r}" if stream else "")
    try:
        yield
    except ProducerError:
        raise
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise AuthenticationError(f"{what}: the credentials were refused", hint="check checkpoints.url") from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise AuthenticationError(
            f"{what}: {error.args[0]}", hint="grant SELECT, INSERT, UPDATE, DELETE on etl_*, and CREATE to make them"
        ) from None
    except asyncpg.InvalidCatalogNameError as error:
        raise ConfigError(f"{what}: {error.args[0]}", hint="check checkpoints.url") from None
    except _AWAY as error:
        if isinstance(error, asyncpg.PostgresError):  # it has answered
            raise StoreUnavailableError(f"{what}: {error.args[0]} ({error.sqlstate})") from None
        reason = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        raise StoreUnavailableError(f"{what}: {reason}", hint="is the server up and reachable?") from None
    except asyncpg.PostgresError as error:
        raise PermanentError(f"{what}: {error.args[0]} ({error.sqlstate})") from None
