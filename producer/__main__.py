"""Owns ``python -m producer``."""

from __future__ import annotations

from producer.cli import command

if __name__ == "__main__":
    command()
