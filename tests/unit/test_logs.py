"""Owns the claims about logs: stderr, plain or JSON, and never a secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from pydantic import BaseModel, SecretStr

from producer.logs import LogFormat, configure_logs, redactor


class Source(BaseModel):
    url: SecretStr = SecretStr("postgresql://reader:hunter%202@localhost/shop")


class Settings(BaseModel):
    api_hash: SecretStr = SecretStr("0123abcd")
    sources: dict[str, Source] = {"shop": Source()}


SECRETS = ("hunter%202", "hunter 2", "0123abcd")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", "producer", "aiokafka")}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_no_secret_reaches_a_log(log_format: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings()
    configure_logs("info", log_format, redactor(settings))
    log = structlog.get_logger("producer.test")
    log.info("with hunter%202", key=settings.api_hash, nested={"a": ["hunter 2"]}, model=settings)
    logging.getLogger("telethon").warning("refused: %s", "0123abcd")
    try:
        raise ValueError("hunter 2 is wrong")
    except ValueError:
        log.exception("it failed")
    out, err = capsys.readouterr()
    assert out == ""
    assert "it failed" in err
    assert "ValueError" in err
    for secret in SECRETS:
        assert secret not in err


def test_json_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    structlog.get_logger("producer.test").warning("retrying", stream="events", wait_s=1.5)
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["stream"], line["wait_s"]) == ("retrying", "warning", "events", 1.5)
    assert line["timestamp"].endswith("Z")


def test_plain_lines_have_their_pairs_behind(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "auto")
    structlog.get_logger("producer.test").info("stream ready", stream="my events", splits=3)
    assert capsys.readouterr().err.endswith("info     stream ready  stream='my events' splits=3\n")


def test_a_level_below_the_asked_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", "plain")
    structlog.get_logger("producer.test").info("quiet")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("level", "shown"), [("info", False), ("debug", True)])
def test_the_attempts_of_the_kafka_client_are_for_debugging(
    level: str, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(level, "plain")
    logging.getLogger("aiokafka.conn").error("Unable connect")
    assert ("Unable connect" in capsys.readouterr().err) is shown
