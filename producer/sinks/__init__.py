"""Owns the list of sinks: name -> the module and class that hold it.

Modules are imported when they are named, so that a run pays only for the clients it uses.
"""

from __future__ import annotations

#: name -> (module, sink class)
SINKS: dict[str, tuple[str, str]] = {
    "kafka": ("producer.sinks.kafka", "KafkaSink"),
    "files": ("producer.sinks.files", "FileSink"),
}
