"""Serves a SQLite file or a PostgreSQL database as a JSONSQL API: ``python -m tests.jsonsql DATABASE``."""

from __future__ import annotations

import argparse
import asyncio

from tests.jsonsql.server import JsonSqlServer, Settings


async def _serve(settings: Settings) -> None:
    async with JsonSqlServer(settings) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.jsonsql", description=__doc__)
    parser.add_argument("database", help="a SQLite file, or postgresql://...")
    parser.add_argument("--port", type=int, default=0, help="default: any free port; the URL is printed")
    parser.add_argument("--username", default="user")
    parser.add_argument("--password", default="secret")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each answer")
    parser.add_argument("--session-s", type=float, default=3600.0, help="how long a session lives")
    parser.add_argument("--max-rows", type=int, help="the API's own cap on a page")
    parser.add_argument("--gzip", action="store_true", help="answers are compressed")
    args = parser.parse_args()
    settings = Settings(
        args.database,
        port=args.port,
        username=args.username,
        password=args.password,
        latency_s=args.latency_ms / 1000,
        session_s=args.session_s,
        max_rows=args.max_rows,
        gzip=args.gzip,
    )
    try:
        asyncio.run(_serve(settings))
    except KeyboardInterrupt:
        pass


main()
