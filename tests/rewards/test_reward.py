"""The arithmetic, against plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from densepath.errors import NonFiniteScoreError
from densepath.rewards.reward import returns, returns_to_go, rewards, total

logps = st.floats(-1e4, 0, width=32)
rewards_T = arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32))


@given(st.lists(st.tuples(logps, logps), min_size=1))
def test_a_reward_is_the_difference(pairs: list[tuple[float, float]]) -> None:
    sft_T, reference_T = np.array(pairs, np.float32).T
    reward_T = rewards(sft_T, reference_T)
    assert reward_T.dtype == np.float32
    assert reward_T.tolist() == [float(np.float32(s) - np.float32(r)) for s, r in pairs]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("at", [0, 2])
def test_rows_17_18_what_is_not_finite_has_no_reward(odd: float, side: int, at: int) -> None:
    both = np.full((2, 3), -1.0, np.float32)
    both[side, at] = odd
    with pytest.raises(NonFiniteScoreError, match=f"{('sft', 'reference')[side]} .* token {at} "):
        rewards(*both)
    both[:, at] = odd  # -inf minus -inf is NaN
    with pytest.raises(NonFiniteScoreError):
        rewards(*both)


@given(rewards_T, st.floats(0, 1))
def test_returns_are_the_discounted_rest(reward_T: np.ndarray, gamma: float) -> None:
    return_T = returns(reward_T, gamma)
    assert return_T.dtype == np.float32
    for t, found in enumerate(return_T):
        want = math.fsum(gamma**k * float(r) for k, r in enumerate(reward_T[t:]))
        assert found == pytest.approx(want, rel=1e-5, abs=1e-5)


def discounted(reward_T: np.ndarray, gamma: float) -> np.ndarray:
    """G_t by its definition, a token after the other, in float64."""
    return_T, after = np.empty(len(reward_T)), 0.0
    for t in reversed(range(len(reward_T))):
        after = float(reward_T[t]) + gamma * after
        return_T[t] = after
    return return_T


@given(st.lists(rewards_T, min_size=1, max_size=4), st.sampled_from([0.0, 1.0, 0.5, 0.99]))
def test_returns_are_those_of_the_definition_to_the_bit(reward_N: list[np.ndarray], gamma: float) -> None:
    longest = max(map(len, reward_N))
    padded_N_T = np.stack([np.pad(reward_T, (0, longest - len(reward_T))) for reward_T in reward_N])
    return_N_T = returns_to_go(padded_N_T, gamma)
    assert return_N_T.dtype == np.float64
    for reward_T, return_T in zip(reward_N, return_N_T, strict=True):
        wanted_T = discounted(reward_T, gamma)
        assert return_T[: len(reward_T)].tolist() == wanted_T.tolist()
        assert not return_T[len(reward_T) :].any(), "0 where there is no token"
        assert returns_to_go(reward_T, gamma).tolist() == wanted_T.tolist()
        assert returns(reward_T, gamma).tolist() == wanted_T.astype(np.float32).tolist()


def test_rewards_stay_as_they_are_where_their_returns_are_made() -> None:
    reward_T = np.arange(3, dtype=np.float64)
    for gamma in (0.0, 0.5, 1.0):
        returns_to_go(reward_T, gamma)[:] = 9.0
        assert reward_T.tolist() == [0.0, 1.0, 2.0]


@given(rewards_T)
def test_gamma_0_and_1_are_the_reward_and_the_rest(reward_T: np.ndarray) -> None:
    assert returns(reward_T, 0.0).tolist() == reward_T.tolist()
    assert float(returns(reward_T, 1.0)[0]) == pytest.approx(total(reward_T), rel=1e-6, abs=1e-6)


def test_a_total_is_summed_in_float64() -> None:
    reward_T = np.array([1e8, 1.0, -1e8], np.float32)
    assert total(reward_T) == 1.0
    assert isinstance(total(reward_T), float)


def test_row_18_what_would_overflow_is_refused() -> None:
    big = np.full(2, np.finfo(np.float32).min, np.float32)
    one = np.full(2, -1.0, np.float32)
    for sft_T, reference_T in ((big, -big), (big, one), (one, big)):  # the last two: only their returns
        with pytest.raises(NonFiniteScoreError):
            rewards(sft_T, reference_T)
    assert rewards(big, big).tolist() == [0.0, 0.0]
    assert np.isfinite(returns(rewards(big[:1], one[:1]), 1.0)).all()
