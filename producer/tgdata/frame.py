"""The DataFrame of messages that `TgData` returns."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa

_DTYPES = {
    pa.int64(): pd.Int64Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
}


class MessageFrame(pd.DataFrame):  # type: ignore[misc]
    """A DataFrame of messages, one a row, integers as integers; `metadata` tells how the batch was read.

    ``rate_limit_remaining`` (percent of the full rate, 0 during a flood wait), ``response_time`` (seconds of the last
    answer), ``delay`` (seconds before the next batch), ``current`` and ``total`` (messages), ``last_message_id``.
    """

    _metadata: ClassVar[list[str]] = ["metadata"]
    metadata: Mapping[str, Any] = MappingProxyType({})

    @property
    def _constructor(self) -> type[MessageFrame]:
        return MessageFrame


def frame_of(table: pa.Table, metadata: Mapping[str, Any]) -> MessageFrame:
    """The table as a frame."""
    frame = MessageFrame(table.to_pandas(types_mapper=_DTYPES.get))
    frame.metadata = metadata
    return frame
