"""The DataFrame of messages that `TgData` returns, with this project's column names or those of the tgdata package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from producer.sources.telegram.chats import CHANNEL_MARK

#: Arrow's own types give plain Python values, where pandas' own give numpy's: json and redis refuse these.
_DTYPES = {kind: pd.ArrowDtype(kind) for kind in (pa.int64(), pa.int32(), pa.float64(), pa.bool_())}
_DTYPES |= {pa.string(): pd.StringDtype()}

#: The types of rows whose missing values are pandas' own objects.
_OWN_MISSING = (pd.ArrowDtype, pd.StringDtype, pd.DatetimeTZDtype, type(np.dtype(object)))

#: The columns of the tgdata package, in its order, by ours.
ORIGINAL_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "id": "MessageId",
        "chat_id": "ChatId",
        "sender_id": "SenderId",
        "sender_name": "Name",
        "sender_username": "Username",
        "text": "Message",
        "media_kind": "MediaType",
        "grouped_id": "GroupedId",
        "media_file": "MediaPath",
        "date": "Date",
        "reply_to_id": "ReplyToId",
        "forward_from_id": "ForwardedFrom",
        "link": "MessageLink",
    }
)

_OWN_NAMES = {theirs: ours for ours, theirs in ORIGINAL_COLUMNS.items()}


class MessageFrame(pd.DataFrame):  # type: ignore[misc]
    """A DataFrame of messages, one a row. A value of a row is a plain int, float, bool, str, a datetime, or None.

    `metadata` tells how the batch was read: ``rate_limit_remaining`` (percent of the full rate, 0 during a wait that
    Telegram ordered, under 10 after one), ``rate_limit_waits`` (such waits since the batch before), ``response_time``
    (seconds of the last answer), ``delay`` (seconds before the next batch), ``current`` and ``total`` (messages),
    ``last_message_id``.
    """

    _metadata: ClassVar[list[str]] = ["metadata"]
    metadata: Mapping[str, Any] = MappingProxyType({})

    @property
    def _constructor(self) -> type[MessageFrame]:
        return MessageFrame

    @property
    def _constructor_sliced(self) -> Callable[..., pd.Series]:
        return partial(_slice, self.columns)

    def __getitem__(self, key: Any) -> Any:
        try:
            return super().__getitem__(key)
        except KeyError:
            if isinstance(key, str) and key in _OWN_NAMES:
                hint = "TgData(..., original_columns=True) gives the original names"
                raise KeyError(f"{key}: it is named {_OWN_NAMES[key]} here; {hint}") from None
            raise

    def iterrows(self) -> Iterator[tuple[Any, pd.Series]]:
        """See `pandas.DataFrame.iterrows`; a missing value is None, and an integer stays one."""
        plain = _plain_frame(self).itertuples(index=False, name=None)
        for label, values in zip(self.index, plain, strict=True):
            yield label, pd.Series(values, index=self.columns, name=label, dtype=object)

    def itertuples(self, index: bool = True, name: str | None = "Pandas") -> Iterator[Any]:
        """See `pandas.DataFrame.itertuples`; a missing value is None."""
        return iter(_plain_frame(self).itertuples(index=index, name=name))

    def to_dict(self, *args: Any, **options: Any) -> Any:
        """See `pandas.DataFrame.to_dict`; a missing value is None."""
        return _plain_frame(self).to_dict(*args, **options)

    def apply(self, func: Any, axis: Any = 0, *args: Any, **options: Any) -> Any:
        """See `pandas.DataFrame.apply`; in a row (``axis=1``) a missing value is None."""
        if axis in (1, "columns"):
            return _plain_frame(self).apply(func, axis, *args, **options)
        return super().apply(func, axis, *args, **options)


def frame_of(table: pa.Table, metadata: Mapping[str, Any], *, original_columns: bool) -> MessageFrame:
    """The table as a frame."""
    frame = MessageFrame((_original(table) if original_columns else table).to_pandas(types_mapper=_DTYPES.get))
    frame.metadata = metadata
    return frame


def _original(table: pa.Table) -> pa.Table:
    """The columns of the tgdata package: the chat's id without its mark, user names with an @."""
    names = pc.binary_join_element_wise("@", table["sender_username"], "")
    columns = {**{name: table[name] for name in ORIGINAL_COLUMNS}, "sender_username": names}
    columns["chat_id"] = _bare(table["chat_id"])
    return pa.table({ORIGINAL_COLUMNS[name]: column for name, column in columns.items()})


def _bare(marked: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids of chats without the mark of their kind."""
    size = pc.abs(marked)
    is_channel = pc.less(marked, -CHANNEL_MARK)
    return pc.if_else(is_channel, pc.subtract(size, CHANNEL_MARK), size)


def _slice(columns: pd.Index, *args: Any, **options: Any) -> pd.Series:
    """A column as it is, a row (its labels are the frame's columns) with None for what is missing."""
    series = pd.Series(*args, **options)
    return _row(series) if series.index.equals(columns) else series


def _row(series: pd.Series) -> pd.Series:
    if isinstance(series.dtype, _OWN_MISSING) and series.isna().any():
        plain = series.astype(object)
        return plain.where(plain.notna(), None)
    return series


def _plain_frame(frame: pd.DataFrame) -> pd.DataFrame:
    objects = pd.DataFrame(frame).astype(object)
    return objects.where(objects.notna(), None)
