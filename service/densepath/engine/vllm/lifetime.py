"""The engine's processes end with the service, however the service ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import connection

#: The service sets this for the processes that it starts. Other programs that use vLLM are not affected.
MARK = "DENSEPATH_ENGINE_OF_SERVICE"
WATCH = "densepath-parent"  # the thread's name


def mark_children() -> None:
    """From now on, vLLM's processes that this process starts end with it."""
    os.environ[MARK] = "1"


def end_with_service() -> None:
    """In a marked process: end it when the process that started it has ended.

    Without this, vLLM's engine process survives a `kill -9` of the service, with both models in memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None or MARK not in os.environ:
        return
    if any(thread.name == WATCH for thread in threading.enumerate()):
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name=WATCH, daemon=True).start()
