"""The results of a file that is being scored, one record after the other.

A record is its length (8 bytes, little-endian) and the blob of `wire.pack_answer`, so numbers stay binary. A
process that is killed while it writes leaves an incomplete last record; readers stop before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from densepath.errors import MalformedBodyError
from densepath.wire import pack_answer, unpack_answer

#: One result: float32 arrays `[T]`, and values that JSON can hold.
Result = dict[str, Any]

_LENGTH_BYTES = 8


def append_record(file: BinaryIO, result: Result) -> None:
    """Write one record. If this process is killed afterwards, the record is not lost.

    Raises ValueError if a value is not finite.
    """
    arrays = {name: value for name, value in result.items() if isinstance(value, np.ndarray)}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("a result has a value that is not finite")
    blob = pack_answer(arrays, {name: value for name, value in result.items() if name not in arrays})
    file.write(len(blob).to_bytes(_LENGTH_BYTES, "little") + blob)
    file.flush()


def read_records(file: BinaryIO) -> Iterator[Result]:
    """The complete records from the file's position on. When one is yielded, the file is at its end."""
    size = os.fstat(file.fileno()).st_size
    while len(length := file.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
        blob_bytes = int.from_bytes(length, "little")
        if blob_bytes > size - file.tell():
            return
        try:
            arrays, fields = unpack_answer(file.read(blob_bytes))
        except MalformedBodyError:
            return
        yield fields | dict(sorted(arrays.items()))  # a blob gives its tensors in any order
