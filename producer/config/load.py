"""Owns reading a configuration: a file into a `Config`, or one line for everything that is wrong with it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from producer.checkpoints import STORES
from producer.config.base import Model
from producer.config.explain import explain, nearest
from producer.config.servers import FileCheckpointsConfig
from producer.config.text import ConfigText, KeyPath, dotted, kind_of, read_config_text
from producer.config.whole import Config
from producer.errors import ConfigError
from producer.sources import SOURCES


def source_model(kind: str) -> type[BaseModel]:
    """The configuration model of a source type; KeyError for an unknown one."""
    module, _, model = SOURCES[kind]
    found: type[BaseModel] = getattr(importlib.import_module(module), model)
    return found


def load_config(path: str | Path, env: Mapping[str, str] | None = None) -> Config:
    """Reads, interpolates and checks a configuration file; ConfigError (one line) for whatever is wrong with it.

    Paths in it are relative to the file's folder, so that a run from elsewhere finds the same checkpoints.
    """
    text = read_config_text(Path(path), os.environ if env is None else env)
    data = dict(text.data)
    wrong = list(text.problems.values())
    if isinstance(data.get("sources"), dict):
        data["sources"] = {name: _load_source(text, name, value, wrong) for name, value in data["sources"].items()}
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        wrong += explain(text, Config, error)
    if wrong:
        raise ConfigError(wrong[0].message, hint=wrong[0].hint, others=wrong[1:])
    if config.checkpoints.type not in STORES:
        raise ConfigError(f"checkpoints.type {config.checkpoints.type} is not built in; valid: {', '.join(STORES)}")
    return _with_absolute_paths(config, text.path.parent.absolute())


def _load_source(text: ConfigText, name: str, value: Any, wrong: list[ConfigError]) -> BaseModel | None:
    """The source's configuration; None where it cannot be had, and what is wrong is added to `wrong`."""
    where: KeyPath = ("sources", name)
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict):
        problem = f"{dotted(where)} is {kind_of(value)}; a source is a mapping with a type"
    elif kind is None:
        problem = f"{dotted(where)}.type is missing; valid: {', '.join(SOURCES)}"
    elif not isinstance(kind, str) or kind not in SOURCES:
        where = (*where, "type")
        problem = f"{dotted(where)} is not a kind of source; valid: {', '.join(SOURCES)}{nearest(str(kind), SOURCES)}"
    else:
        model = source_model(kind)
        try:
            return model.model_validate(value)
        except ValidationError as error:
            wrong += explain(text, model, error, where)
            return None
    if where not in text.problems:
        wrong.append(ConfigError(f"{text.at(where)}: {problem}"))
    return None


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    def absolute(model: Model, *names: str) -> dict[str, str]:
        return {name: str(folder / value) for name in names if (value := getattr(model, name)) is not None}

    ssl = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
    update: dict[str, Any] = {
        "kafka": config.kafka.model_copy(update=absolute(config.kafka, *ssl)),
        "streams": tuple(s.model_copy(update=absolute(s, "schema_file")) for s in config.streams),
    }
    if config.schema_registry is not None:
        update["schema_registry"] = config.schema_registry.model_copy(update=absolute(config.schema_registry, *ssl))
    if isinstance(config.checkpoints, FileCheckpointsConfig):
        update["checkpoints"] = config.checkpoints.model_copy(update=absolute(config.checkpoints, "path"))
    return config.model_copy(update=update)
