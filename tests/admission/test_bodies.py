"""The byte budget: never exceeded, always given back, and small bodies get through beside large ones."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densepath.admission import ByteBudget
from densepath.admission.bodies import SMALL_BODY_BYTES
from densepath.errors import OverloadedError

LARGEST = 32 << 20


@given(st.lists(st.lists(st.integers(0, LARGEST), min_size=1, max_size=4), max_size=30))
def test_row_03_it_is_never_exceeded_and_always_given_back(bodies: list[list[int]]) -> None:
    budget = ByteBudget(LARGEST)
    with ExitStack() as stack:
        for declared, *grown in bodies:
            before = budget.held_bytes
            hold = None
            with suppress(OverloadedError):
                hold = stack.enter_context(budget.hold(declared))
            if hold is None:
                assert budget.held_bytes == before
                continue
            for size in grown:
                with suppress(OverloadedError):
                    hold.grow(size)
            assert budget.held_bytes == before + hold.held
            assert budget.held_bytes <= budget.max_bytes
    assert budget.held_bytes == 0


def test_large_bodies_leave_room_for_small_ones() -> None:
    budget = ByteBudget(LARGEST)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(budget.hold(LARGEST))
        with pytest.raises(OverloadedError):
            stack.enter_context(budget.hold(LARGEST))
        for _ in range(16):
            stack.enter_context(budget.hold(SMALL_BODY_BYTES))
