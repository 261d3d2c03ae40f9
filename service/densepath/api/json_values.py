"""The number of values in a JSON text, counted before it is parsed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: A parse holds the interpreter, and so the whole service, until all values are built. These take 0.1 s.
MOST_VALUES = 1 << 20
_CHUNK = 1 << 20
_QUOTE, _BACKSLASH = b'"\\'
_BEFORE_VALUES = b",:[{"


def has_too_many_values(text: bytes) -> bool:
    """Whether a JSON text has more than MOST_VALUES values. Punctuation in its strings does not count.

    In a text that is not JSON, only what comes before the first error is counted exactly.
    """
    if len(text) <= MOST_VALUES:
        return False
    count, inside, escaping = 0, False, False
    for start in range(0, len(text), _CHUNK):
        byte_C = np.frombuffer(text, np.uint8, min(_CHUNK, len(text) - start), start)
        quote_C = byte_C == _QUOTE
        slash_C = byte_C == _BACKSLASH
        if escaping or slash_C.any():
            escaped_C = _escaped(slash_C, escaping)
            quote_C &= ~escaped_C[:-1]
            escaping = bool(escaped_C[-1])
        inside_C = np.bitwise_xor.accumulate(quote_C) ^ inside
        inside = bool(inside_C[-1])
        for mark in _BEFORE_VALUES:
            count += int(np.count_nonzero((byte_C == mark) & ~inside_C))
        if count >= MOST_VALUES:
            return True
    return False


def _escaped(slash_C: NDArray[np.bool_], escaping: bool) -> NDArray[np.bool_]:
    """Which characters follow an odd number of backslashes, and whether the one after the chunk does."""
    slash_C = np.concatenate(([escaping], slash_C))  # an escape from the chunk before is one backslash
    index_C = np.arange(len(slash_C), dtype=np.int32)
    other_C = np.maximum.accumulate(np.where(slash_C, np.int32(-1), index_C))
    run_C = index_C - other_C  # how many backslashes end here; 0 where none does
    return np.asarray(run_C % 2 == 1)
