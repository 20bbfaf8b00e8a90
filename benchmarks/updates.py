"""Owns the long run of updates during a snapshot: `python -m benchmarks.updates [--updates 1000000] [--rows 400000]`.

The same as the test in `tests/integration/test_followed.py`, at the size that the guarantee is stated for: a table that
is updated from the first record of its snapshot on. That no key goes back to an older version, and that the last record
of each key is its row's final state, is asserted; what is printed is how many updates and records there were.
"""

from __future__ import annotations

import argparse
import tempfile
import uuid
from pathlib import Path

from producer.embedded import EmbeddedKafka
from tests.integration.following import update_during_snapshot
from tests.services.databases import Postgres

PATIENCE_S = 900.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Updates rows while their table is read, and checks what is left.")
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=400_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as kafka:
        postgres = Postgres("max_wal_size=2GB")
        postgres.start()
        try:
            found = update_during_snapshot(
                Path(folder),
                postgres.dsn(),
                kafka.bootstrap,
                f"updates-{uuid.uuid4().hex[:8]}",
                rows=args.rows,
                updates=args.updates,
                patience_s=PATIENCE_S,
            )
        finally:
            postgres.close()
    print(
        f"{args.rows:,} rows, {found.updates:,} updates in {found.update_s:.0f} s: {found.records:,} records, the last "
        f"of each key is its row's final state {found.after_s:.0f} s after the last update; none went back"
    )


if __name__ == "__main__":
    main()
