"""Owns the claims about converted connector configurations: our own check takes them, they say what is missing, and no
secret is in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from producer.cli import main
from producer.config import Config, load_config

SECRET = "s3cr$t:p@ss"
JDBC = {
    "connector.class": "io.confluent.connect.jdbc.JdbcSourceConnector",
    "connection.url": f"jdbc:postgresql://db:5432/shop?user=reader&password={SECRET}&sslmode=require&loginTimeout=3",
    "connection.password": SECRET,
    "table.whitelist": 'public.orders,"Odd Name".Cust',
    "mode": "timestamp+incrementing",
    "incrementing.column.name": "id",
    "timestamp.column.name": "updated_at",
    "topic.prefix": "shop-",
    "poll.interval.ms": 2500,
    "batch.max.rows": "2000",
    "timestamp.delay.interval.ms": "1500",
}
DEBEZIUM = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "database.hostname": "pg",
    "database.port": "5432",
    "database.user": "cdc",
    "database.password": SECRET,
    "database.dbname": "inventory",
    "topic.prefix": "server1",
    "table.include.list": r"public\.orders,public.customers",
    "slot.name": "dbz",
}


class Converted:
    """What the command printed, and the configuration that it is."""

    def __init__(self, text: str, folder: Path) -> None:
        self.text = text
        path = folder / "converted.yaml"
        path.write_text(text, encoding="utf-8")
        names = re.findall(r"\$\{([A-Z_]+)", text)
        self.config: Config = load_config(path, dict.fromkeys(names, "something"))

    @property
    def url(self) -> str:
        source: Any = self.config.sources["database"]
        return str(source.url.get_secret_value())


@pytest.fixture
def converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def convert(settings: dict[str, Any] | str, name: str = "connector.json") -> Converted:
        file = tmp_path / name
        file.write_text(settings if isinstance(settings, str) else json.dumps({"name": "c 1", "config": settings}))
        assert main(["import", "connect-config", str(file)]) == 0
        return Converted(capsys.readouterr().out, tmp_path)

    return convert


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> str:
    file = tmp_path / "connector.json"
    file.write_text(text)
    assert main(["import", "connect-config", str(file)]) == 2
    return capsys.readouterr().err


def test_a_jdbc_source_becomes_a_stream_for_each_table(converted: Any) -> None:
    done = converted(JDBC)
    orders, customers = done.config.streams
    assert done.config.app == "c-1"
    assert done.url == "postgresql://reader:something@db:5432/shop?sslmode=require"
    assert (orders.table, orders.topic) == ("public.orders", "shop-orders")
    assert (customers.table, customers.topic) == ('"Odd Name"."Cust"', "shop-Cust")
    assert (orders.mode, orders.order_by, orders.page_size, orders.poll_interval_s) == (
        "timestamp",
        ("updated_at", "id"),
        2000,
        2.5,
    )
    assert orders.delay_s == 1.5
    assert done.config.checkpoints.type == "kafka"
    assert "loginTimeout" in done.text


@pytest.mark.parametrize("settings", [JDBC, DEBEZIUM], ids=["jdbc", "debezium"])
def test_no_password_is_printed(converted: Any, settings: dict[str, Any]) -> None:
    more = {
        "value.converter": "io.confluent.connect.avro.AvroConverter",
        "value.converter.schema.registry.url": f"https://u:{SECRET}@registry:8081",
        "value.converter.basic.auth.user.info": f"u:{SECRET}",
        "producer.override.sasl.jaas.config": f'Module required password="{SECRET}";',
        "transforms": "x",
        "transforms.x.type": "com.example.Odd",
        "transforms.x.secret": SECRET,
        "something.else": SECRET,
        f"column.mask.hash.SHA-256.with.salt.{SECRET}": "public.orders.email",
    }
    text = converted({**settings, **more}).text
    assert "s3cr" not in text
    assert "https://registry:8081" in text


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ({"mode": "bulk"}, ("snapshot", None)),
        ({"mode": "incrementing", "incrementing.column.name": "id"}, ("snapshot_then_tail", ("id",))),
        ({"mode": "incrementing", "incrementing.column.name": ""}, ("snapshot_then_tail", None)),
        ({"mode": "timestamp", "timestamp.column.name": "a,b"}, ("timestamp", ("a",))),
    ],
)
def test_modes_of_jdbc(converted: Any, mode: dict[str, str], expected: tuple[str, tuple[str, ...] | None]) -> None:
    (stream, *_) = converted(
        {**JDBC, "timestamp.column.name": "", "incrementing.column.name": "", **mode}
    ).config.streams
    assert (stream.mode, stream.order_by) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("jdbc:mysql://u:x@db/shop", "mysql://u:something@db/shop"),
        ("jdbc:mariadb://db:3307/shop?useSSL=false", "mariadb://db:3307/shop"),
        ("jdbc:sqlite:/data/shop.db", "sqlite:////data/shop.db"),
        ("jdbc:postgresql:shop", "postgresql://localhost/shop"),
        ("jdbc:postgresql://a:5433,b/shop", "postgresql://a:5433,b/shop"),
        (
            "jdbc:postgresql://a:5433,b/shop?targetServerType=primary",
            "postgresql://a:5433,b/shop?target_session_attrs=read-write",
        ),
        ("${file:/etc/secrets:url}", "something"),
    ],
)
def test_urls_of_jdbc(converted: Any, url: str, expected: str) -> None:
    settings = {**JDBC, "connection.url": url, "table.whitelist": "orders", "connection.password": ""}
    assert converted(settings).url == expected


def test_debezium_keeps_its_topics_keys_and_columns(converted: Any) -> None:
    done = converted(
        {
            **DEBEZIUM,
            "snapshot.mode": "initial_only",
            "snapshot.fetch.size": "10240",
            "message.key.columns": "public.orders:order_no,line",
            "column.exclude.list": "public.customers.ssn",
            "column.mask.with.5.chars": "public.customers.phone",
            "column.mask.hash.SHA-256.with.salt.Cz": "public.customers.email",
            "exactly.once.support": "required",
        }
    )
    orders, customers = done.config.streams
    assert (orders.topic, orders.key, orders.mode) == ("server1.public.orders", ("order_no", "line"), "snapshot")
    assert customers.exclude == ("ssn",)
    assert [transform.model_dump(exclude_none=True)["mask"] for transform in customers.transforms] == [
        ("phone",),
        ("email",),
    ]
    assert done.config.delivery == "exactly_once"
    assert "replication slot" in done.text


@pytest.mark.parametrize("asked", ["initial", "never", "no_data", "when_needed", "configuration_based"])
def test_every_snapshot_mode_of_debezium_has_a_mode(converted: Any, asked: str) -> None:
    (stream, _) = converted({**DEBEZIUM, "snapshot.mode": asked}).config.streams
    expected = ("tail", "latest") if asked in ("never", "no_data") else ("snapshot_then_tail", "beginning")
    assert (stream.mode, stream.start) == expected


def test_debezium_of_mysql_reads_the_database_of_its_tables(converted: Any) -> None:
    settings = {
        **DEBEZIUM,
        "connector.class": "io.debezium.connector.mysql.MySqlConnector",
        "database.dbname": "",
        "table.include.list": "shop.orders",
        "schema.history.internal.kafka.bootstrap.servers": "k1:9092",
    }
    done = converted(settings)
    assert done.url == "mysql://cdc:something@pg:5432/shop"
    assert done.config.streams[0].topic == "server1.shop.orders"
    assert done.config.kafka.bootstrap_servers == "k1:9092"


def test_transforms_that_are_known_keep_their_order_and_others_are_named(converted: Any) -> None:
    package = "org.apache.kafka.connect.transforms"
    transforms = {
        "transforms": "hide, mask, cast, static, key, route, odd, when",
        "transforms.hide.type": f"{package}.ReplaceField$Value",
        "transforms.hide.exclude": "note",
        "transforms.hide.renames": "cust:customer",
        "transforms.mask.type": f"{package}.MaskField$Value",
        "transforms.mask.fields": "email",
        "transforms.mask.replacement": "$hidden",
        "transforms.cast.type": f"{package}.Cast$Value",
        "transforms.cast.spec": "amount:float64,small:int8",
        "transforms.static.type": f"{package}.InsertField$Value",
        "transforms.static.static.field": "region",
        "transforms.static.static.value": "eu",
        "transforms.key.type": f"{package}.ValueToKey",
        "transforms.key.fields": "id",
        "transforms.route.type": f"{package}.RegexRouter",
        "transforms.route.regex": "shop-(.*)",
        "transforms.route.replacement": "new.$1",
        "transforms.odd.type": "com.example.Odd",
        "transforms.when.type": f"{package}.Cast$Value",
        "transforms.when.predicate": "isOrder",
    }
    done = converted({**JDBC, **transforms, "table.whitelist": "orders"})
    (stream,) = done.config.streams
    assert [transform.model_dump(by_alias=True, exclude_none=True) for transform in stream.transforms] == [
        {"drop": ("note",)},
        {"rename": {"cust": "customer"}},
        {"mask": ("email",), "with": "$hidden"},
        {"cast": {"amount": "double", "small": "int"}},
        {"constant": {"region": "eu"}},
    ]
    assert (stream.key, stream.topic) == (("id",), "new.orders")
    assert "transforms.odd (Odd)" in done.text
    assert "transforms.when (Cast$Value): has a predicate" in done.text


def test_the_registry_of_the_value_converter_is_taken_over(converted: Any) -> None:
    avro = {
        "value.converter": "io.confluent.connect.avro.AvroConverter",
        "value.converter.schema.registry.url": "http://registry:8081",
        "value.converter.auto.register.schemas": "false",
        "value.converter.value.subject.name.strategy": "io.confluent.kafka.serializers.subject.RecordNameStrategy",
    }
    registry = converted({**JDBC, **avro}).config.schema_registry
    assert (registry.url, registry.auto_register, registry.subject_strategy) == (
        "http://registry:8081",
        False,
        "record_name",
    )


def test_every_setting_without_a_counterpart_is_named(converted: Any) -> None:
    settings = {
        "numeric.mapping": "best_fit",
        "db.timezone": "UTC",
        "query.suffix": "x",
        "made.up": "y",
        "tasks.max": "4",
    }
    text = converted({**JDBC, **settings}).text
    assert not [name for name in settings if f"#   {name}: " not in text]


def test_patterns_and_missing_tables_are_said(converted: Any) -> None:
    done = converted({**DEBEZIUM, "table.include.list": "public.(a|b), audit.*"})
    assert [stream.table for stream in done.config.streams] == ["name_a_table"]
    assert "'audit.*' is a pattern" in done.text


def test_tables_of_one_name_get_names_of_their_own(converted: Any) -> None:
    names = [stream.name for stream in converted({**JDBC, "table.whitelist": "a.t,b.t"}).config.streams]
    assert names == ["a.t", "b.t"]


def test_properties_are_read_as_java_reads_them(converted: Any) -> None:
    text = (
        "# a comment\n! another\nname = shop\n"
        "connector.class=io.confluent.connect.jdbc.JdbcSourceConnector\n"
        "connection.url = jdbc\\:sqlite\\:/data/shop.db\n"
        "table.whitelist: orders,\\\n    customers\nmode bulk\ntopic.prefix=caf\\u00e9-\n"
    )
    done = converted(text, "shop.properties")
    assert [stream.table for stream in done.config.streams] == ["orders", "customers"]
    assert done.config.app == "shop"
    assert done.config.streams[0].topic == "caf_-orders"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON error"),
        ("[]", "one connector a file"),
        ("{}", "no connector.class"),
        (json.dumps({**JDBC, "connector.class": "org.example.S3SinkConnector"}), "no counterpart"),
        (json.dumps({**JDBC, "connection.url": f"jdbc:oracle:thin:u/{SECRET}@db"}), "'oracle' is no known database"),
        (json.dumps({**JDBC, "connection.url": SECRET}), "not a JDBC URL"),
        (json.dumps({**JDBC, "connection.url": f"jdbc:postgresql://[{SECRET}"}), "not a JDBC URL"),
        (json.dumps({**JDBC, "mode": "other"}), "mode is not known"),
        (json.dumps({**JDBC, "mode": "timestamp", "timestamp.column.name": ""}), "timestamp.column.name is not set"),
        (json.dumps({**JDBC, "batch.max.rows": "many"}), "batch.max.rows is text"),
    ],
)
def test_what_cannot_be_converted_is_one_line_without_a_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    line = refused(tmp_path, capsys, text)
    assert said in line
    assert line.count("\n") == 1
    assert "s3cr" not in line


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "connect-config", str(tmp_path / "no.json")]) == 2
    assert "no.json does not exist" in capsys.readouterr().err
