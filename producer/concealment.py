"""Owns what may be told of a stream's failure: no values of columns that its transforms mask or drop."""

from __future__ import annotations

from producer.config import DropConfig, MaskConfig, StreamConfig
from producer.errors import ConfigError, EncodeError, NullKeyError, ProducerError, RepeatedKeyError
from producer.model import Dataset


def tellable(error: ProducerError, stream: StreamConfig, dataset: Dataset | None) -> ProducerError:
    """`error`, or one in its place without the source's words, which quote a row's key and the value that is wrong.

    An encoder's error names its stream: what it quotes has been masked already.
    """
    concealing = any(isinstance(transform, MaskConfig | DropConfig) for transform in stream.transforms)
    if not concealing or not isinstance(error, EncodeError | RepeatedKeyError):
        return error
    if isinstance(error, NullKeyError):
        return error  # of such a stream it quotes nothing
    of_encoder = isinstance(error, EncodeError) and error.stream == stream.name
    if of_encoder or not _quotes_concealed(error, stream, dataset):
        return error
    hint = error.hint or "which value of which row is not told, because of the stream's mask and drop"
    if isinstance(error, RepeatedKeyError):
        return RepeatedKeyError(f"stream {stream.name!r}: several rows have the same key", hint=hint)
    what = f"column {error.field!r}" if error.field else "a column"
    message = f"stream {stream.name!r}: {what} holds a value that is not of its type"
    return EncodeError(message, field=error.field, row=error.row, hint=hint)


def _quotes_concealed(error: EncodeError | RepeatedKeyError, stream: StreamConfig, dataset: Dataset | None) -> bool:
    """Whether a column that the error may quote is concealed; all of them are where the columns are not known."""
    from producer.transforms import compile_transforms

    if dataset is None or (isinstance(error, EncodeError) and not error.field):  # it may quote any value
        return True
    try:
        transform = compile_transforms(stream.transforms, dataset, stream=stream.name)
    except ConfigError:  # for columns that have come or gone
        return True
    quoted = {*dataset.key, *dataset.order} | ({error.field} if isinstance(error, EncodeError) else set())
    return transform is not None and not transform.concealed.isdisjoint(quoted)
