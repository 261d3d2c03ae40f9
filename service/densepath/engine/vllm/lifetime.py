"""No orphans: the engine's processes end with the service, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import connection

#: Set by the service for the processes that it starts: other users of vLLM keep vLLM's own behaviour.
MARK = "DENSEPATH_ENGINE_OF_SERVICE"
WATCH = "densepath-parent"  # the thread's name


def mark_children() -> None:
    """From now on, vLLM's processes started from here end with this one."""
    os.environ[MARK] = "1"


def end_with_service() -> None:
    """In a marked process: end it when the one that started it is gone.

    vLLM's engine process outlives a `kill -9` of the service, with both models in memory.
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
