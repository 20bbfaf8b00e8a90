"""Owns the claims about column transforms: what each makes of values and schema, and what is refused at start."""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import hmac
from typing import Any

import pyarrow as pa
import pytest

from producer.config import StreamConfig
from producer.encoding.schema import derive_key_schema, derive_value_schema
from producer.errors import ConfigError, EncodeError, SchemaIncompatibleError
from producer.model import Dataset, KeyPosition, Page
from producer.transforms import Transform, compile_transforms

SALT = "pepper and salt"
ROWS: list[dict[str, Any]] = [
    {"id": 1, "email": "a@x", "phone": "1", "amount": "1.50", "created": dt.datetime(2024, 7, 1, 12), "flag": 0},
    {"id": 2, "email": None, "phone": None, "amount": None, "created": None, "flag": None},
    {"id": 3, "email": "a@x", "phone": "3", "amount": "-7", "created": dt.datetime(2024, 1, 1, 12), "flag": 1},
]
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("email", pa.string(), metadata={"comment": "who", "sql_type": "text"}),
        pa.field("phone", pa.string()),
        pa.field("amount", pa.string()),
        pa.field("created", pa.timestamp("us")),
        pa.field("flag", pa.int32()),
    ]
)


def dataset(**more: Any) -> Dataset:
    return Dataset("people", SCHEMA, ("id",), ("id",), {"table": "people"}, **more)


def made(*transforms: dict[str, Any], of: Dataset | None = None) -> Transform:
    stream = StreamConfig.model_validate({"source": "shop", "table": "people", "transforms": transforms})
    found = compile_transforms(stream.transforms, of or dataset(), stream="people")
    assert found is not None
    return found


def page(rows: list[dict[str, Any]] | None = None) -> Page:
    return Page(pa.RecordBatch.from_pylist(ROWS if rows is None else rows, schema=SCHEMA), KeyPosition((3,)))


def column(transform: Transform, name: str) -> list[Any]:
    batch = transform.page(page()).batch
    assert batch.schema == transform.dataset.schema
    values: list[Any] = batch.column(name).to_pylist()
    return values


def avro_types(transform: Transform) -> dict[str, Any]:
    return {field["name"]: field["type"] for field in derive_value_schema(transform.dataset)["fields"]}


def hashed(text: str, salt: str = SALT) -> str:
    return hmac.new(salt.encode(), text.encode(), hashlib.sha256).hexdigest()


def test_rename_names_a_column_anew_everywhere() -> None:
    transform = made({"rename": {"id": "person", "email": "phone", "phone": "email"}})
    assert column(transform, "phone") == ["a@x", None, "a@x"]
    assert transform.dataset.key == ("person",)
    assert list(avro_types(transform)) == ["person", "phone", "email", "amount", "created", "flag"]
    key = derive_key_schema(transform.dataset)
    assert key is not None
    assert [field["name"] for field in key["fields"]] == ["person"]


def test_drop_takes_columns_out_and_a_key_column_out_of_the_value_alone() -> None:
    transform = made({"drop": ["email", "id"]})
    assert list(avro_types(transform)) == ["phone", "amount", "created", "flag"]
    assert column(transform, "id") == [1, 2, 3]
    assert derive_key_schema(transform.dataset) == derive_key_schema(dataset())


@pytest.mark.parametrize(
    ("value", "avro"), [(True, "boolean"), (7, "long"), (1.5, "double"), ("eu", "string")], ids=repr
)
def test_constant_adds_a_column_that_is_never_null(value: Any, avro: str) -> None:
    transform = made({"constant": {"region": value}})
    assert column(transform, "region") == [value] * 3
    assert avro_types(transform)["region"] == avro


def test_mask_with_a_salt_is_hmac_sha256_of_the_text_and_leaves_null() -> None:
    transform = made({"mask": ["email", "id", "created"], "salt": SALT})
    assert column(transform, "email") == [hashed("a@x"), None, hashed("a@x")]
    assert column(transform, "id") == [hashed("1"), hashed("2"), hashed("3")]
    assert column(transform, "created")[0] == hashed("2024-07-01 12:00:00.000000")
    assert avro_types(transform)["id"] == "string"
    assert transform.dataset.schema.field("email").metadata == {b"comment": b"who"}


@pytest.mark.parametrize("length", [8, 63, 64, 65, 200])
def test_a_salt_may_be_of_any_length(length: int) -> None:
    assert column(made({"mask": ["email"], "salt": "s" * length}), "email")[0] == hashed("a@x", "s" * length)


def test_mask_with_a_text_replaces_every_value_and_leaves_null() -> None:
    assert column(made({"mask": ["phone", "flag"], "with": "***"}), "flag") == ["***", None, "***"]


def test_a_masked_key_shows_in_no_position() -> None:
    assert made({"mask": ["id"], "salt": SALT}).page(page()).position is None
    assert made({"mask": ["email"], "salt": SALT}).page(page()).position == KeyPosition((3,))


@pytest.mark.parametrize(
    ("name", "kind", "values", "avro"),
    [
        ("amount", "decimal(12,2)", [decimal.Decimal("1.50"), None, decimal.Decimal("-7.00")], "bytes"),
        ("flag", "boolean", [False, None, True], "boolean"),
        ("flag", "decimal(5,2)", [decimal.Decimal("0.00"), None, decimal.Decimal("1.00")], "bytes"),
        ("id", "string", ["1", "2", "3"], "string"),
        ("created", "date", [dt.date(2024, 7, 1), None, dt.date(2024, 1, 1)], "int"),
        ("email", "bytes", [b"a@x", None, b"a@x"], "bytes"),
    ],
)
def test_cast_changes_values_and_schema(name: str, kind: str, values: list[Any], avro: str) -> None:
    transform = made({"cast": {name: kind}})
    assert column(transform, name) == values
    found = avro_types(transform)[name]
    found = found[1] if isinstance(found, list) else found
    assert (found["type"] if isinstance(found, dict) else found) == avro


@pytest.mark.parametrize("bad", [0, 1, 499, 998, 999])
def test_a_value_that_cannot_be_cast_is_named_by_its_row_and_key(bad: int) -> None:
    rows = [{**ROWS[0], "id": i, "amount": "oops" if i == bad else "1"} for i in range(1000)]
    with pytest.raises(EncodeError, match=f"key id={bad}: column 'amount'.* has no form as decimal") as caught:
        made({"cast": {"amount": "decimal(12,2)"}}).page(page(rows))
    assert (caught.value.row, caught.value.field) == (bad, "amount")
    assert "oops" not in str(caught.value)


def test_timestamps_without_a_zone_are_read_as_the_named_one() -> None:
    transform = made({"to_utc": ["created"], "zone": "Europe/Paris"})
    summer, nothing, winter = column(transform, "created")
    assert (summer, nothing, winter) == (
        dt.datetime(2024, 7, 1, 10, tzinfo=dt.UTC),
        None,
        dt.datetime(2024, 1, 1, 11, tzinfo=dt.UTC),
    )
    assert avro_types(transform)["created"][1]["logicalType"] == "timestamp-micros"


def to_utc(zone: str, *local: dt.datetime | None) -> list[dt.datetime | None]:
    transform = made({"to_utc": ["created"], "zone": zone})
    rows = [{**ROWS[0], "id": row, "created": moment} for row, moment in enumerate(local)]
    found: list[dt.datetime | None] = transform.page(page(rows)).batch.column("created").to_pylist()
    return found


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("zone", "local", "moment"),
    [
        ("Europe/Paris", "2024-10-27 02:30", "2024-10-27 00:30"),
        ("Europe/Paris", "2024-10-27 02:59:59.999999", "2024-10-27 00:59:59.999999"),
        ("Europe/Paris", "2024-10-27 03:00", "2024-10-27 02:00"),
        ("America/New_York", "2024-11-03 01:00", "2024-11-03 05:00"),
        ("Australia/Lord_Howe", "2024-04-07 01:45", "2024-04-06 14:45"),
        ("Australia/Lord_Howe", "2024-04-07 02:00", "2024-04-06 15:30"),
        ("Europe/Paris", "2050-07-01 12:00", "2050-07-01 10:00"),
        ("America/New_York", "9998-07-01 12:00", "9998-07-01 16:00"),
        ("Europe/Paris", "1899-07-01 12:00", "1899-07-01 11:50:39"),
        ("Asia/Kolkata", "1850-01-01 00:00", "1849-12-31 18:06:32"),
        ("+05:30", "2024-01-01 00:00", "2023-12-31 18:30"),
        ("-10:00", "2024-01-01 00:00", "2024-01-01 10:00"),
    ],
)
def test_a_local_time_is_the_first_moment_at_which_the_clocks_showed_it(zone: str, local: str, moment: str) -> None:
    nothing, found, last = to_utc(zone, None, dt.datetime.fromisoformat(local), None)
    assert (nothing, found, last) == (None, utc(moment), None)


@pytest.mark.parametrize(
    ("zone", "local"),
    [
        ("Europe/Paris", "2024-03-31 02:00"),
        ("Europe/Paris", "2024-03-31 02:30"),
        ("America/New_York", "2024-03-10 02:59:59.999999"),
        ("Australia/Lord_Howe", "2024-10-06 02:15"),
        ("America/New_York", "2060-03-14 02:30"),
        ("Asia/Manila", "1844-12-31 12:00"),
        ("Pacific/Apia", "2011-12-30 12:00"),
    ],
)
def test_a_local_time_that_the_clocks_skip_is_a_bad_value_of_its_row(zone: str, local: str) -> None:
    good = dt.datetime(2024, 7, 1, 12)
    with pytest.raises(EncodeError, match=f"id=2.*'created': the clocks of {zone} skip") as caught:
        to_utc(zone, good, None, dt.datetime.fromisoformat(local), good)
    assert (caught.value.row, caught.value.field) == (2, "created")


def test_transforms_are_done_in_their_order() -> None:
    transform = made(
        {"rename": {"amount": "price"}},
        {"cast": {"price": "decimal(12,2)"}},
        {"cast": {"price": "string"}},
        {"mask": ["price"], "salt": SALT},
    )
    assert column(transform, "price") == [hashed("1.50"), None, hashed("-7.00")]


def test_tombstones_get_the_same_keys_as_rows() -> None:
    transform = made({"rename": {"id": "person"}}, {"mask": ["person"], "salt": SALT}, {"constant": {"c": 1}})
    gone = pa.record_batch({"id": pa.array([3], pa.int64())})
    found = transform.page(Page(page().batch, None, tombstones=gone)).tombstones
    assert found is not None
    assert found.to_pylist() == [{"person": hashed("3")}]


def test_columns_for_paging_alone_do_not_leave() -> None:
    of = Dataset("people", SCHEMA, ("id",), ("created", "id"), {}, hidden=frozenset({"created"}))
    transform = made({"rename": {"phone": "created"}}, of=of)
    assert transform.dataset.schema.names == ["id", "email", "created", "amount", "flag"]
    assert column(transform, "created") == ["1", None, "3"]


def test_the_fingerprint_stays() -> None:
    assert made({"drop": ["email"]}).dataset.fingerprint("ID_RANGE") == dataset().fingerprint("ID_RANGE")


def test_a_page_of_other_columns_is_refused() -> None:
    with pytest.raises(SchemaIncompatibleError, match="differ"):
        made({"drop": ["email"]}).page(Page(page().batch.select(["id"]), None))


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"drop": ["emial"]}], "drop: there is no column 'emial'; did you mean 'email'?"),
        ([{"drop": ["email"]}, {"mask": ["email"], "with": "x"}], "mask: there is no column 'email'"),
        ([{"drop": SCHEMA.names}], "no columns are left"),
        ([{"rename": {"email": "phone"}}], "two columns would be named 'phone'"),
        ([{"rename": {"email": ""}}], "is empty"),
        ([{"constant": {"email": "x"}}], "there is a column 'email' already"),
        ([{"mask": ["id"], "with": "x"}], "part of the key"),
        ([{"cast": {"amount": "decimal(99,2)"}}], "precision is 1 to 76"),
        ([{"cast": {"amount": "doubel"}}], "'doubel' is not a type; did you mean 'double'?"),
        ([{"cast": {"created": "boolean"}}], "'created' of type timestamp.* cannot become bool"),
        ([{"cast": {"created": "timestamp"}}], "without a zone.*to_utc"),
        ([{"cast": {"id": "boolean"}}], "part of the key"),
        ([{"to_utc": ["email"]}], "'email' is of type string, not a timestamp"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_start(transforms: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=f"stream 'people': transforms: .*{message}"):
        made(*transforms)


def test_a_keys_local_hours_are_not_folded_into_one() -> None:
    of = Dataset("people", SCHEMA, ("created",), ("created",), {})
    with pytest.raises(ConfigError, match="part of the key"):
        made({"to_utc": ["created"], "zone": "Europe/Paris"}, of=of)
    assert made({"to_utc": ["created"]}, of=of).dataset.key == ("created",)
