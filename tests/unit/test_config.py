"""Owns the claims about configuration: what parses, and that each mistake is one line which names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from producer.cli import main
from producer.config import Config, FileCheckpointsConfig, RegistryConfig, load_config
from producer.encoding.registry import RegistryClient
from producer.errors import ConfigError
from producer.sources.sql import SqlConfig, SqlSource

PASSWORD = "hunter2secret"
CONTRACT = """\
app: shop-export
kafka:
  bootstrap_servers: ${KAFKA_BOOTSTRAP:-localhost:9092}
  compression: zstd
  security_protocol: SASL_SSL
  max_inflight_bytes: 64MiB
schema_registry: {url: "http://localhost:8081", username: reader, password: "${file:secrets/registry}"}
checkpoints: {type: file, path: ./state}
delivery: at_least_once
http: {host: 127.0.0.1, port: 9464}
sources:
  shop:   {type: sql, url: "postgresql://reader:${PGPASSWORD}@localhost/shop"}
  chats:  {type: telegram, api_id: 1, api_hash: "${TG_HASH}", session: "${file:secrets/session}"}
  portal: {type: iptvportal, domain: operator, username: u, password: "${PORTAL_PASSWORD}"}
streams:
  - name: events
    source: shop
    table: public.events
    topic: shop.events
    traversal: ID_RANGE
    mode: snapshot
    key: [id]
    page_size: 5000
    max_parallel: 3
    columns: [id, name]
    exclude: []
    where: "id > :least"
    params: {least: 5}
    order_by: [id]
    schema: events.avsc
    partitions: 4
    replication_factor: 1
    topic_config: {retention.ms: "1000"}
    on_bad_record: dead_letter
    transforms: []
    poll_interval_s: 1.5
    max_rows_per_s: 100
"""
MINIMAL: Mapping[str, Any] = {
    "sources": {"shop": {"type": "sql", "url": f"postgresql://reader:{PASSWORD}@localhost/shop"}},
    "streams": [{"source": "shop", "table": "public.events"}],
}


def load(folder: Path, text: str | Mapping[str, Any], env: Mapping[str, str] | None = None) -> Config:
    path = folder / "shop.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(dict(text), sort_keys=False), encoding="utf-8")
    return load_config(path, env or {})


def changed(where: str, value: Any) -> dict[str, Any]:
    """MINIMAL with one key put in; `where` is dotted, with list indexes as numbers."""
    document: Any = yaml.safe_load(yaml.safe_dump(dict(MINIMAL)))
    node = document
    *path, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    for part in path:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
    node[last] = value
    return dict(document)


def refusal(folder: Path, text: str | Mapping[str, Any], env: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, env)
    message = str(caught.value)
    assert "\n" not in message
    assert PASSWORD not in message
    return message


def test_every_name_of_the_contract_parses(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "registry").write_text("registry password\n")
    (tmp_path / "secrets" / "session").write_text("session\n")
    env = {"PGPASSWORD": PASSWORD, "TG_HASH": "0" * 32, "PORTAL_PASSWORD": PASSWORD}
    config = load(tmp_path, CONTRACT, env)
    assert config.kafka.bootstrap_servers == "localhost:9092"
    assert config.kafka.max_inflight_bytes == 64 * 2**20
    assert config.schema_registry is not None
    assert config.schema_registry.password == SecretStr("registry password")
    assert config.sources["shop"].url == SecretStr(f"postgresql://reader:{PASSWORD}@localhost/shop")
    stream = config.streams[0]
    assert (stream.name, stream.topic, stream.key, stream.params) == ("events", "shop.events", ("id",), {"least": 5})
    assert stream.schema_file == str(tmp_path / "events.avsc")
    assert PASSWORD not in repr(config)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("events", "events"),
        ("public.events", "events"),
        ('public."t-1"', "t-1"),
        ('"a.b"."c.d"', "c.d"),
        ('"sa""id"', 'sa"id'),
    ],
)
def test_a_stream_is_named_after_its_table(tmp_path: Path, table: str, name: str) -> None:
    document = changed("streams.0.table", table)
    document["streams"][0]["topic"] = "t"
    assert load(tmp_path, document).streams[0].name == name


@pytest.mark.parametrize(("chat", "name"), [("@news", "news"), ("https://t.me/news/", "news"), (-100123, "-100123")])
def test_a_stream_is_named_after_its_chat(tmp_path: Path, chat: str | int, name: str) -> None:
    document = changed("streams.0.chat", chat)
    del document["streams"][0]["table"]
    stream = load(tmp_path, document).streams[0]
    assert (stream.name, stream.topic) == (name, f"shop.{name}")


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 2**26), ("1MB", 10**6), ("1.5 KiB", 1536), ("4096", 4096), (4096, 4096), ("2gib", 2**31)],
)
def test_sizes_have_units(tmp_path: Path, text: str | int, size: int) -> None:
    assert load(tmp_path, changed("kafka.max_inflight_bytes", text)).kafka.max_inflight_bytes == size


@pytest.mark.parametrize("servers", ["a:9092, b.example-1.com:9093", "kafka", "[::1]:9092,10.0.0.1:1"])
def test_brokers_are_named_by_host_and_port(tmp_path: Path, servers: str) -> None:
    assert load(tmp_path, changed("kafka.bootstrap_servers", servers)).kafka.bootstrap_servers == servers


def test_paths_are_relative_to_the_configuration(tmp_path: Path) -> None:
    checkpoints = load(tmp_path, MINIMAL).checkpoints
    assert isinstance(checkpoints, FileCheckpointsConfig)
    assert checkpoints.path == str(tmp_path / "state")


def test_two_dollars_are_one(tmp_path: Path) -> None:
    document = changed("streams.0.where", "name = '$${x}$$' and price = '$5'")
    assert load(tmp_path, document).streams[0].where == "name = '${x}$' and price = '$5'"


def test_a_default_stands_in_for_an_empty_variable(tmp_path: Path) -> None:
    document = changed("http.port", "${PORT:-0}")
    assert load(tmp_path, document, {"PORT": ""}).http.port == 0
    assert load(tmp_path, document, {"PORT": "81"}).http.port == 81


def test_a_missing_variable_is_named_with_its_key_and_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'app: a\nsources:\n  s: {type: sql, url: "x://${NOPE}"}\nstreams: []\n')
    assert message.startswith(f"{tmp_path / 'shop.yaml'}:3: sources.s.url: environment variable NOPE is not set")


def test_a_missing_secret_file_is_named_with_its_key(tmp_path: Path) -> None:
    message = refusal(tmp_path, changed("app", "${file:nope}"))
    assert "app: cannot read file" in message
    assert "nope: No such file" in message


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("streams.0.traversel", "OFFSET", "streams[0].traversel is not a known key; did you mean 'traversal'?"),
        ("strems", [], "strems is not a known key; did you mean 'streams'?"),
        ("kafka.bootstrap_server", "x", "did you mean 'bootstrap_servers'?"),
        ("checkpoints", {"type": "file", "pth": "x"}, "checkpoints.pth is not a known key; did you mean 'path'?"),
        ("sources.shop.ulr", "x", "sources.shop.ulr is not a known key; did you mean 'url'?"),
        ("streams.0.traversal", "ID_RNGE", "streams[0].traversal is 'ID_RNGE'; valid: OFFSET, ID_RANGE; did you mean"),
        ("streams.0.traversal", "offset", "did you mean 'OFFSET'?"),
        ("checkpoints", {"type": "flie"}, "checkpoints.type is 'flie'; valid: file, kafka, postgres, redis; did you"),
        ("sources.shop.type", "sq", "sources.shop.type is not a kind of source; valid: sql"),
        ("streams.0.source", "shpo", "streams[0].source is 'shpo', which is not in sources; did you mean 'shop'?"),
        ("streams.0.page_size", "many", "streams[0].page_size is text; valid: a whole number"),
        ("streams.0.page_size", 0, "streams[0].page_size is out of range; valid: at least 1"),
        ("streams.0.page_size", True, "streams[0].page_size is a boolean; valid: a whole number"),
        ("streams.0.key", "id", "streams[0].key is text; valid: a list"),
        ("streams.0.key", [7], "streams[0].key[0] is a whole number; valid: text; put it in quotes"),
        ("streams.0.chat", "c", "table and chat are both given"),
        ("kafka.bootstrap_servers", "localhost:abc", "kafka.bootstrap_servers: not brokers; valid: host:port"),
        ("kafka.bootstrap_servers", "", "kafka.bootstrap_servers: not brokers"),
        ("kafka.bootstrap_servers", "a:9092,,b:9092", "kafka.bootstrap_servers: not brokers"),
        ("kafka.bootstrap_servers", "http://a:9092", "kafka.bootstrap_servers: not brokers"),
        ("kafka.bootstrap_servers", "a:65536", "kafka.bootstrap_servers: not brokers"),
        ("streams.0.topic", "a b", "topic 'a b' is not a Kafka topic name"),
        ("streams.0.name", "a/b", "name is empty or has a slash"),
        ("streams.0.mode", "timestamp", "mode timestamp needs order_by"),
        ("streams", [], "streams is empty; it needs at least 1 entry"),
        ("sources", [], "sources is a list; valid: a mapping"),
        ("sources.shop.url", 12345, "sources.shop.url is a whole number; valid: text"),
        ("kafka.sasl_password", [PASSWORD], "kafka.sasl_password is a list; valid: text"),
        ("kafka.max_inflight_bytes", "64MEG", "kafka.max_inflight_bytes: not a size"),
        ("http.port", 70000, "http.port is out of range; valid: at most 65535"),
        ("http", "9464", "http is text; valid: a mapping"),
        ("delivery", "exactly_once", "delivery exactly_once needs checkpoints of type kafka, not file"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(tmp_path: Path, where: str, value: object, told: str) -> None:
    assert told in refusal(tmp_path, changed(where, value))


@pytest.mark.parametrize("mode", ["tail", "snapshot_then_tail"])
def test_offset_cannot_tail(tmp_path: Path, mode: str) -> None:
    document = changed("streams.0.mode", mode)
    document["streams"][0]["traversal"] = "OFFSET"
    assert f"traversal OFFSET cannot be used with mode {mode}" in refusal(tmp_path, document)


def test_exactly_once_refuses_offset(tmp_path: Path) -> None:
    document = changed("streams.0.traversal", "OFFSET") | {"delivery": "exactly_once", "checkpoints": {"type": "kafka"}}
    assert "cannot be delivered exactly_once" in refusal(tmp_path, document)


def test_two_streams_of_one_name_are_refused(tmp_path: Path) -> None:
    document = changed("streams", [*MINIMAL["streams"], *MINIMAL["streams"]])
    assert "streams[1] and streams[0] have the same name 'events'" in refusal(tmp_path, document)


def test_further_mistakes_are_counted(tmp_path: Path) -> None:
    document = changed("streams.0.page_size", "many") | {"delivery": "never", "apps": 1}
    assert refusal(tmp_path, document).endswith("(and 2 more: producer validate lists them)")


SEVERAL = """\
app: shop
kafka: {compresion: zstd, max_inflight_bytes: lots}
http: {port: yes}
sources:
  shop: {type: sql, ulr: "postgresql://reader:${NOPE}@localhost/shop"}
  other: {type: [sql]}
streams:
  - {source: shop, table: events, page_size: many}
  - {source: shop, table: events, topic: "a b", mode: tail, traversal: OFFSET}
  - {source: "${NEITHER}", table: items, max_rows_per_s: 0}
"""


def test_every_mistake_is_listed_by_itself_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SEVERAL.replace("${NOPE}", PASSWORD))
    told = [error.message.removeprefix(f"{tmp_path / 'shop.yaml'}:") for error in (caught.value, *caught.value.others)]
    assert told == [
        "10: streams[2].source: environment variable NEITHER is not set",
        "5: sources.shop.url is missing",
        "5: sources.shop.ulr is not a known key; did you mean 'url'?",
        "6: sources.other.type is not a kind of source; valid: sql, telegram, iptvportal; did you mean 'sql'?",
        "2: kafka.max_inflight_bytes: not a size; write bytes as a whole number, or with a unit: "
        "kB, MB, GB, KiB, MiB, GiB",
        "2: kafka.compresion is not a known key; did you mean 'compression'?",
        "3: http.port is a boolean; valid: a whole number",
        "8: streams[0].page_size is text; valid: a whole number",
        "9: streams[1]: topic 'a b' is not a Kafka topic name (letters, digits, dot, underscore, hyphen, at most 249); "
        "set topic",
        "9: streams[1]: traversal OFFSET cannot be used with mode tail; use ID_RANGE, or mode snapshot",
        "10: streams[2].max_rows_per_s is out of range; valid: more than 0",
    ]


def test_rules_between_keys_are_told_all_with_the_lines_of_what_they_refuse(tmp_path: Path) -> None:
    text = """\
sources:
  shop: {type: sql, url: "sqlite:///x.db"}
streams:
  - source: shpo
    table: events
  - source: shop
    table: events
    traversal: OFFSET
delivery: exactly_once
"""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    told = [error.message.removeprefix(f"{tmp_path / 'shop.yaml'}:") for error in (caught.value, *caught.value.others)]
    assert [line.split(" ", 2)[:2] for line in told] == [
        ["4:", "streams[0].source"],
        ["6:", "streams[1]"],
        ["8:", "streams[1].traversal"],
        ["9:", "delivery"],
    ]
    document = changed("streams.0.mode", "tail") | {"delivery": "never"}
    document["streams"][0] |= {"traversal": "OFFSET", "topic": "a b", "columns": ["a", "b"], "exclude": ["a", "b"]}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, document)
    assert len(caught.value.others) == 4  # topic, traversal, two columns; delivery is the first


def test_a_refused_value_of_a_secret_is_not_shown(tmp_path: Path) -> None:
    document = changed("kafka.compression", "${SECRET}")
    refusal(tmp_path, document, {"SECRET": PASSWORD})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2", "shop.yaml:2:2: YAML error:"),
        ("a:\n\t- b", "shop.yaml:2:1: YAML error:"),
        ("a: 1\nb: 2\na: 3", "shop.yaml:3: a is given twice, first on line 1"),
        ("kafka:\n  x: 1\n  x: 2", "shop.yaml:3: kafka.x is given twice, first on line 2"),
        ("a: !!python/object:os.system x", "shop.yaml:1:4: YAML error:"),
        ("a: *nope", "shop.yaml:1:4: YAML error:"),
        ("a: &x [*x]", "refers to itself"),
        ("a: 2024-02-31", "YAML error: day is out of range"),
        ("a: \x00", "YAML error"),
        ("1: 2", "a key is a whole number; keys are text"),
        ("- 1", "holds a list"),
        ("", "is empty"),
        ("a: ${", "a ${ without its }"),
        ("a: ${x y}", "neither ${NAME}, ${NAME:-default} nor ${file:PATH}"),
    ],
)
def test_a_broken_file_is_one_line_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(tmp_path, text)


def test_a_billion_laughs_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "grows without end" in refusal(tmp_path, "\n".join(lines))


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    text = yaml.safe_dump(dict(MINIMAL)).replace("streams:\n- ", "streams:\n- &first\n  ")
    config = load(tmp_path, text + "- {<<: *first, name: again, topic: again}\n")
    assert [stream.name for stream in config.streams] == ["events", "again"]


def _with_transforms(tmp_path: Path, transforms: str, env: Mapping[str, str]) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(
        "sources: {shop: {type: sql, url: 'sqlite:///x.db'}}\n"
        f"streams: [{{source: shop, table: t, transforms: [{transforms}]}}]\n"
    )
    return load_config(path, env)


def test_a_masks_salt_is_a_secret(tmp_path: Path) -> None:
    config = _with_transforms(tmp_path, '{mask: [email], salt: "${SALT}"}', {"SALT": PASSWORD})
    assert PASSWORD not in repr(config)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ("{renam: {a: b}}", "transforms[0]: 'renam' is not a transform; valid: rename, drop"),
        ("{}", "is not a transform; valid: rename"),
        ("drop", "a transform is a mapping with one of: rename"),
        ("{drop: [a], mask: [b]}", "drop and mask are two transforms"),
        ("{drop: []}", "transforms[0].drop is empty"),
        ("{drop: [a], salt: x}", "transforms[0].salt is not a known key"),
        ("{mask: [a]}", "transforms[0]: a mask needs one of salt"),
        ("{mask: [a], salt: '${SALT}'}", "salt is too short"),
        ("{to_utc: [a], zone: Europe/Pari}", "'Europe/Pari' is not a time zone; did you mean 'Europe/Paris'?"),
        ("{constant: {a: }}", "transforms[0].constant.a is empty"),
    ],
)
def test_a_wrong_transform_is_told_in_one_line(tmp_path: Path, transforms: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _with_transforms(tmp_path, transforms, {"SALT": "h2s"})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "h2s" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://u:hunter2secret@host:port/db", "mysql://u:hunter2secret@[::1/db"])
def test_a_source_url_without_a_readable_port_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="host and port cannot be read") as caught:
        SqlSource(SqlConfig(url=SecretStr(url)))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("url", ["registry:8081", "http://", "http://host:port", "http://[::1"])
def test_a_registry_url_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match=r"schema_registry\.url is not an http or https URL"):
        RegistryClient(RegistryConfig(url=url))


def test_a_runs_url_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("http://[::1", "http://host:port"):
        assert main(["status", url]) == 2
        assert f"error: {url} is not a URL" in capsys.readouterr().err


def test_a_session_for_one_process_is_not_shared_by_several(tmp_path: Path) -> None:
    document = changed("coordination", "kafka") | {"checkpoints": {"type": "kafka"}}
    document["sources"]["chats"] = {"type": "telegram", "api_id": 1, "api_hash": "h", "session": "s"}
    assert load(tmp_path, document).coordination == "kafka"  # no stream uses it
    document["streams"].append({"source": "chats", "chat": "@demo"})
    with pytest.raises(ConfigError, match=r"would use the session of sources\.chats from several processes"):
        load(tmp_path, document)


@pytest.mark.parametrize("url", ["ftp://host/api", "http://", "http://localhost:port/api", "http://[::1"])
def test_a_lineage_url_that_is_none_is_told(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"lineage\.url is not an http or https URL"):
        load(tmp_path, changed("lineage", {"url": url}))


def test_deletes_are_not_looked_for_in_a_topic_of_several_streams(tmp_path: Path) -> None:
    document = changed("streams.0.deletes", {"every_s": 60})
    document["streams"][0]["mode"] = "snapshot_then_tail"
    document["streams"].append({"source": "shop", "table": "public.more"})
    load(tmp_path, document)
    for stream in document["streams"]:
        stream["topic"] = "both"
    with pytest.raises(ConfigError, match=r"streams\[0\]\.deletes would take other streams' keys in topic 'both'"):
        load(tmp_path, document)
