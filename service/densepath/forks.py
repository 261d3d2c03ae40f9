"""What a forked child must not keep: a lock or a port would stay taken after the death of its parent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Closable(Protocol):
    """An open file or socket."""

    def close(self) -> None:
        """Close it in this process alone."""


_kept: list[Closable] = []


@contextmanager
def closed_in_forks(thing: Closable) -> Iterator[None]:
    """Inside the block, a child that is forked from this process closes its copy of `thing` at once.

    A process that is started with another program, such as one that is spawned, has no copy anyway.
    """
    _kept.append(thing)
    try:
        yield
    finally:
        _kept.remove(thing)


def _close_all() -> None:
    for thing in _kept:
        thing.close()
    _kept.clear()


os.register_at_fork(after_in_child=_close_all)
