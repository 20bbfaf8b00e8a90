"""The session settings of MySQL and MariaDB that could change what is read, and literals that mean the same under all.

Every connection sets them before its first query. A literal depends on none of them: bytes are written in hexadecimal,
and so is a text with anything that one of the modes reads in its own way.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
import uuid
from collections.abc import Mapping
from typing import Any

from producer.errors import ConfigError

#: In this mode a user's ``where`` is read. It is the mode without any flag, but that a comparison with a date such as
#: 2024-02-31, which a column may hold, finds that date.
SQL_MODE = "ALLOW_INVALID_DATES"

#: Each session variable that is set, and its value as SQL text. A server without a variable is not asked to set it.
SETTINGS: Mapping[str, str] = {
    "sql_mode": f"'{SQL_MODE}'",
    "time_zone": "'+00:00'",
    "autocommit": "1",
    "completion_type": "0",
    "character_set_collations": "''",  # which collation a literal of a character set has
    "default_regex_flags": "''",
    "default_week_format": "0",
    "div_precision_increment": "4",
    "explain_format": "'TRADITIONAL'",
    "group_concat_max_len": "1048576",
    "information_schema_stats_expiry": "0",  # else AUTO_INCREMENT there may be that of a day ago
    "lc_time_names": "'en_US'",
    "max_join_size": "18446744073709551615",
    "max_recursive_iterations": "4294967295",  # beyond it the server gives fewer rows, and no error
    "max_sort_length": "524288",  # ORDER BY looks at so many bytes of a text's weights
    "net_read_timeout": "30",
    "net_write_timeout": "60",
    "old_mode": "'UTF8_IS_UTF8MB3'",
    "sort_buffer_size": "GREATEST(@@sort_buffer_size, 8388608)",  # 15 such texts: with less the server refuses to sort
    "sql_auto_is_null": "0",
    "sql_big_selects": "1",
    "sql_quote_show_create": "1",
    "sql_safe_updates": "0",
    "sql_select_limit": "18446744073709551615",
    "standard_compliant_cte": "1",
    "system_versioning_asof": "DEFAULT",  # the rows of now, not those of the past
    "transaction_isolation": "'REPEATABLE-READ'",
    "transaction_read_only": "1",
    "tx_isolation": "'REPEATABLE-READ'",  # as MariaDB calls it
    "tx_read_only": "1",
    "wait_timeout": "28800",
    "wsrep_dirty_reads": "0",
}
#: The longest key, in characters or bytes, that `max_sort_length` sorts whole: a character weighs up to 32 bytes.
MAX_KEY_LENGTH = 16_384
#: The first statement of a connection: the driver and SQLAlchemy have queries of their own before the others.
FIRST = "SET " + ", ".join(
    f"SESSION {name} = {SETTINGS[name]}"
    for name in ("sql_mode", "sql_select_limit", "completion_type", "max_join_size", "sql_big_selects")
)
_NAMES = "NAMES utf8mb4 COLLATE utf8mb4_general_ci"

#: The settings that a proxy between may reset, as one text; it is asked for with each page.
STATE = (
    "CONCAT_WS(' ', @@sql_mode, @@time_zone, @@character_set_client, @@character_set_results, @@collation_connection,"
    " @@max_sort_length, @@sql_select_limit, @@sql_auto_is_null + 0)"
)
#: What `STATE` is as long as nobody has.
STATE_SET = f"{SQL_MODE} +00:00 utf8mb4 utf8mb4 utf8mb4_general_ci 524288 18446744073709551615 0"

#: Gives the variables that the server has of those that `preparation` looks at.
VARIABLES = (
    "SHOW SESSION VARIABLES WHERE Variable_name IN ("
    + ", ".join(f"'{name}'" for name in ("max_execution_time", "max_statement_time", "secure_timestamp", *SETTINGS))
    + ")"
)

#: A text that is the same in every mode and character set: not empty (Oracle's NULL), without quotes and backslashes.
_PLAIN = re.compile(r"[ !#-&(-\[\]-~]+")
_CHARACTER_SET = re.compile(r" character set (\w+)$")


def preparation(variables: Mapping[str, str], timeout_s: float) -> str:
    """The statement of a new connection; `variables` is what `VARIABLES` gives, `timeout_s` the limit of a query."""
    settings = {name: value for name, value in SETTINGS.items() if name in variables}
    if "max_statement_time" in variables:  # MariaDB
        settings["max_statement_time"] = f"{timeout_s:f}"
        if variables.get("secure_timestamp", "NO") == "NO":
            settings["timestamp"] = "DEFAULT"
    elif "max_execution_time" in variables:
        settings["max_execution_time"] = f"{round(timeout_s * 1000):d}"
    return "SET " + ", ".join([*(f"SESSION {name} = {value}" for name, value in settings.items()), _NAMES])


def literal(value: Any, sql_type: str = "") -> str:
    """`value` as SQL that means the same in every sql_mode; `sql_type` is that of the column it is compared with.

    Bytes are binary, or a text in the character set that `sql_type` ends with. ConfigError for a value of another kind.
    """
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return f"{value:d}"
        case float() if value - value == 0:
            return f"{value!r}e0" if "e" not in repr(value) else repr(value)
        case decimal.Decimal() if value.is_finite():
            return f"{value:f}"
        case uuid.UUID():
            return literal(str(value))
        case str() if _PLAIN.fullmatch(value):
            return f"'{value}'"
        case str():
            return f"_utf8mb4 x'{value.encode().hex()}'"
        case bytes():
            found = _CHARACTER_SET.search(sql_type)
            return f"_{found[1] if found else 'binary'} x'{value.hex()}'"
        case dt.datetime():
            moment = value if value.tzinfo is None else value.astimezone(dt.UTC).replace(tzinfo=None)
            return f"'{moment.isoformat(sep=' ')}'"
        case dt.date() | dt.time():
            return f"'{value.isoformat()}'"
    raise ConfigError(f"params: MySQL takes no {type(value).__name__}")
