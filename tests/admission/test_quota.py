from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densepath.admission import TokenQuotas
from densepath.errors import QuotaExceededError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_balance_grows_back_and_each_key_has_its_own() -> None:
    clock = Clock()
    quotas = TokenQuotas(60, clock)
    quotas.ensure(b"a")
    quotas.charge(b"a", 90)  # any size may begin
    with pytest.raises(QuotaExceededError, match="60 tokens") as refused:
        quotas.ensure(b"a")
    assert refused.value.retry_after == 31
    quotas.ensure(b"b")
    clock.now += 30
    with pytest.raises(QuotaExceededError):
        quotas.ensure(b"a")
    clock.now += 1
    quotas.ensure(b"a")


def test_nobody_without_a_key_and_nobody_without_a_quota_is_refused() -> None:
    quotas = TokenQuotas(1)
    quotas.charge(None, 1000)
    quotas.ensure(None)
    free = TokenQuotas()
    free.charge(b"a", 1000)
    free.ensure(b"a")


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500)), max_size=30), st.integers(1, 1000))
def test_row_01_retry_after_is_enough_and_no_key_gets_more(
    steps: list[tuple[float, int]], per_minute: int
) -> None:
    clock = Clock()
    quotas = TokenQuotas(per_minute, clock)
    begin, charged = clock.now, 0
    for seconds, tokens in steps:
        clock.now += seconds
        try:
            quotas.ensure(b"a")
        except QuotaExceededError as refused:
            clock.now += refused.retry_after or 0
            quotas.ensure(b"a")
        # Before its last request, a key has had no more than a full balance and what has grown since.
        assert charged <= per_minute * (1 + (clock.now - begin) / 60) + 1e-6
        quotas.charge(b"a", tokens)
        charged += tokens
