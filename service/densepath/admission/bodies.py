"""The byte budget: how many bytes of bodies there may be at a time, in all requests together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from densepath.errors import OverloadedError

#: So many bodies of the largest size fit at a time.
LARGEST_BODIES = 4
#: Large bodies leave an eighth of the budget to those that are at most this large.
SMALL_BODY_BYTES = 1 << 20


class Hold:
    """The share of the budget that one body holds."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0

    def grow(self, size: int) -> None:
        """Hold `size` bytes, if it holds fewer. Raises OverloadedError where there is no room for them."""
        if size > self.held:
            self._budget.take(size - self.held, of=size)
            self.held = size


class ByteBudget:
    """Bytes of all bodies that are being read, parsed or answered. For one event loop."""

    def __init__(self, max_body_bytes: int) -> None:
        self.max_bytes = LARGEST_BODIES * max_body_bytes
        self.held_bytes = 0

    @contextmanager
    def hold(self, declared: int) -> Iterator[Hold]:
        """Hold the declared bytes of a body, and those that it grows by, until the request has ended.

        Raises OverloadedError where there is no room for them.
        """
        hold = Hold(self)
        hold.grow(declared)
        try:
            yield hold
        finally:
            self.held_bytes -= hold.held

    def take(self, size: int, *, of: int) -> None:
        """Take `size` bytes for a body of `of` bytes."""
        most = self.max_bytes if of <= SMALL_BODY_BYTES else self.max_bytes // 8 * 7
        if self.held_bytes + size > most:
            raise OverloadedError(
                f"requests with {self.held_bytes} bytes are being read or answered, and with this one they "
                f"would be more than {most}: send it again after Retry-After",
                retry_after=1,
            )
        self.held_bytes += size
