"""The size of parquet rows as Python values: many may share one long text, even within a single row."""

# ruff: noqa: ANN401 - pyarrow has no types
from __future__ import annotations

from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]


def texts_in_lists(schema: Any) -> list[str]:
    """Columns of text within lists and structs; read as dictionaries they take no more memory than in the file."""
    columns = [schema.column(number) for number in range(len(schema))]
    return [each.path for each in columns if each.physical_type == "BYTE_ARRAY" and "." in each.path]


def written_out(batch: Any) -> int:
    """Bytes of a batch with its dictionaries expanded."""
    return sum(map(_bytes_of, batch.columns))


def _bytes_of(array: Any) -> int:
    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        return _shared_bytes(array)
    if pyarrow.types.is_struct(kind):
        return sum(map(_bytes_of, array.flatten()))
    if pyarrow.types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(_bytes_of(part.slice(first, last - first)) for part in (array.keys, array.items))
    if pyarrow.types.is_nested(kind):  # lists
        return int(array.nbytes) - int(array.flatten().nbytes) + _bytes_of(array.flatten())
    return int(array.nbytes)


def _shared_bytes(array: Any) -> int:
    texts = array.dictionary
    if not (pyarrow.types.is_string(texts.type) or pyarrow.types.is_binary(texts.type)):
        return int(array.dictionary_decode().nbytes)
    lengths = pyarrow.compute.binary_length(texts).take(array.indices)
    return int(array.indices.nbytes) + (pyarrow.compute.sum(lengths.cast(pyarrow.int64())).as_py() or 0)
