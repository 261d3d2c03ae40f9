"""`densepath`, in a process that tells how many asyncio tasks, connections and other objects it has.

    python tests/endurance/watched.py SOCKET serve …

Each connection to the Unix socket SOCKET gets one JSON object. The fake engine takes some milliseconds for a
sequence here, and fails on two ids.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import socket
import sys
import threading
from collections import Counter
from typing import Any

FAKE_SECONDS = 0.004
NAN_ID, RAISE_ID = 318, 319  # beyond the tokenizer


def counts() -> dict[str, Any]:
    """Live tasks, open connections, and how many objects there are of each type."""
    from densepath.api.protocol import BoundedProtocol

    gc.collect()
    objects = gc.get_objects()
    protocols = [each for each in objects if issubclass(type(each), BoundedProtocol)]
    types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in objects)
    return {
        "tasks": sum(type(each) is asyncio.Task and not each.done() for each in objects),
        "connections": max((len(each.connections) for each in protocols), default=0),
        "protocols": len(protocols),
        "types": dict(types),
    }


def answer(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(json.dumps(counts()).encode())


def slow_fake() -> None:
    """Put a fake engine that takes time, and that has faults, in the place of the usual one."""
    from densepath.engine import fake
    from densepath.engine.scorer import Scored

    class SlowFake(fake.FakeScorer):
        async def score(self, *args: Any, **options: Any) -> Scored:
            await asyncio.sleep(FAKE_SECONDS)
            return await super().score(*args, **options)

    fake.FakeScorer = functools.partial(SlowFake, non_finite_after_id=NAN_ID, raise_on_id=RAISE_ID)  # type: ignore[misc,assignment]


def main() -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    threading.Thread(target=answer, args=(listener,), daemon=True).start()
    del sys.argv[1]
    if "fake" in sys.argv:
        slow_fake()
    from densepath.cli import main as densepath

    densepath()


if __name__ == "__main__":
    main()
