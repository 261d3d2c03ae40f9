"""Python's garbage collector, for processes that load torch, transformers or vLLM."""

from __future__ import annotations

import gc

#: Collect after this many new objects. Python's own number is 700.
_NEW_OBJECTS = 50_000


def collect_rarely() -> None:
    """Call this before the libraries are imported.

    Their import makes about a million objects that live as long as the process. With Python's own thresholds,
    looking through them again and again takes a quarter of the time of the import.
    """
    gc.set_threshold(_NEW_OBJECTS, 20, 20)
