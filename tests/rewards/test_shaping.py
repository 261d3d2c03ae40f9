"""Shaping: what each function does, and what potential-based shaping leaves as it is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densepath.rewards import shaping
from densepath.rewards.advantages import Baseline
from densepath.trainer.reinforce.batch import Response
from densepath.trainer.reinforce.dense_path import weigh
from densepath.trainer.reinforce.settings import TrainSettings

R = np.array([1.0, -3.0, 0.5], np.float32)


def test_scale_clip_and_length() -> None:
    np.testing.assert_allclose(shaping.scale(R, 2.0), [2, -6, 1])
    np.testing.assert_allclose(shaping.clip(R, 0.75), [0.75, -0.75, 0.5])
    np.testing.assert_allclose(shaping.normalise_length(R), R / 3)


def test_centring_takes_the_mean_over_all_tokens() -> None:
    first, second = shaping.centre([R, np.array([2.5], np.float32)])
    np.testing.assert_allclose(first, R - 0.25)
    np.testing.assert_allclose(second, [2.25])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 1.0])
def test_a_potential_leaves_the_optimal_policy_as_it_is(gamma: float) -> None:
    """A small MDP: sequences of two tokens up to length 4; every deterministic policy's best tokens by value
    iteration, with and without a random potential of the state."""
    rng = np.random.default_rng(1)
    states = [s for n in range(4) for s in itertools.product((0, 1), repeat=n)]
    reward = {(s, a): float(rng.normal()) for s in states for a in (0, 1)}
    potential = {s: float(rng.normal() * 3) for s in states}
    plain = _best_tokens(states, reward, gamma)
    shaped = {}
    for s, a in reward:
        after = (*s, a)
        phi_T = np.array([potential[s], potential.get(after, 0.0)])
        one_T = np.array([reward[s, a], 0.0])
        shaped[s, a] = float(shaping.add_potential(one_T, phi_T, gamma)[0])
    assert shaped != reward
    assert _best_tokens(states, shaped, gamma) == plain
    other = {key: value - potential[key[0]] * key[1] for key, value in reward.items()}  # no potential
    assert _best_tokens(states, other, gamma) != plain


def _best_tokens(
    states: list[tuple[int, ...]], reward: dict[tuple[tuple[int, ...], int], float], gamma: float
) -> dict[tuple[int, ...], int]:
    value: dict[tuple[int, ...], float] = {}
    best = {}
    for s in sorted(states, key=len, reverse=True):
        q = [reward[s, a] + gamma * value.get((*s, a), 0.0) for a in (0, 1)]
        best[s], value[s] = int(np.argmax(q)), max(q)
    return best


def test_a_potential_telescopes_with_gamma_1() -> None:
    phi_T = np.array([0.7, -2.0, 5.0])
    assert shaping.add_potential(R, phi_T, 1.0).sum() == pytest.approx(R.sum() - 0.7)


def test_likelihood_potential_is_of_the_state_before_the_token() -> None:
    np.testing.assert_allclose(
        shaping.likelihood_potential(np.array([-1.0, -2.0, -4.0], np.float32), 0.5), [0.0, -0.5, -1.5]
    )


PLAIN = TrainSettings(
    sft=Path("s"), prompts=Path("p"), run=Path("r"), kl=0.0, gamma=0.0, baseline=Baseline.NONE
)


def response(reward_T: np.ndarray) -> Response:
    logp_T = np.full(len(reward_T), -1.0, np.float32)
    return Response(0, (1,), tuple(range(len(reward_T))), True, logp_T, reward_T, logp_T)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({}, [1, -3, 0.5]),
        ({"reward_scale": 2.0}, [2, -6, 1]),
        ({"reward_clip": 1.0}, [1, -1, 0.5]),
        ({"reward_centre": True}, [1.5, -2.5, 1.0]),
        ({"length_normalise": True}, [1 / 3, -1, 0.5 / 3]),
        ({"sft_potential": 1.0}, [1, -2, 2.5]),
        ({"reward_clip": 1.0, "reward_scale": 2.0, "length_normalise": True}, [2 / 3, -2 / 3, 1 / 3]),
    ],
)
def test_a_batch_applies_what_is_asked_for(change: dict[str, object], want: list[float]) -> None:
    (advantage_T,) = weigh([response(R)], replace(PLAIN, **change))
    np.testing.assert_allclose(advantage_T, want, rtol=1e-6)
