"""The results of a file that is being scored, one record after the other.

A record is the length of its blob (8 bytes, little-endian), the CRC-32 of the blob (4 bytes), and the blob of
`wire.pack_answer`, so numbers stay binary. A process that is killed while it writes leaves an incomplete last
record. Readers stop before it, and before a record that is not what was written.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from densepath.errors import MalformedBodyError
from densepath.wire import pack_answer, unpack_answer

#: One result: float32 arrays `[T]`, and values that JSON can hold.
Result = dict[str, Any]

_LENGTH_BYTES, _SUM_BYTES = 8, 4


def append_record(file: BinaryIO, result: Result) -> None:
    """Write one record. If this process is killed afterwards, the record is not lost.

    Raises ValueError if a value is not finite.
    """
    arrays = {name: value for name, value in result.items() if isinstance(value, np.ndarray)}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("a result has a value that is not finite")
    blob = pack_answer(arrays, {name: value for name, value in result.items() if name not in arrays})
    file.write(len(blob).to_bytes(_LENGTH_BYTES, "little") + _sum(blob) + blob)
    file.flush()


def read_records(file: BinaryIO) -> Iterator[Result]:
    """The complete records from the file's position on. When one is yielded, the file is at its end."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(_LENGTH_BYTES + _SUM_BYTES)) == _LENGTH_BYTES + _SUM_BYTES:
        blob_bytes = int.from_bytes(head[:_LENGTH_BYTES], "little")
        if blob_bytes > size - file.tell():
            return
        blob = file.read(blob_bytes)
        if _sum(blob) != head[_LENGTH_BYTES:]:
            return
        try:
            arrays, fields = unpack_answer(blob)
        except MalformedBodyError:
            return
        yield fields | dict(sorted(arrays.items()))  # a blob gives its tensors in any order


def _sum(blob: bytes) -> bytes:
    return zlib.crc32(blob).to_bytes(_SUM_BYTES, "little")
