"""Changes of the reward, all off by default: pure functions on one response's float arrays [T].

A batch applies what is asked for in this order: clip, scale, centre, length normalisation, potential. The
paper's reward (arXiv 2510.02493, Eq. 5) is the unshaped one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def scale(reward_T: Floats, factor: float) -> Floats:
    """r_t * factor. With KL coefficient b this is the same optimum as factor 1 with b / factor."""
    return reward_T * factor


def clip(reward_T: Floats, bound: float) -> Floats:
    """r_t within [-bound, bound] nats: one absurd token cannot outweigh a response.

    Sums then no longer telescope into log-likelihoods. Source: reward clipping, Mnih et al. 2015.
    """
    return np.clip(reward_T, -bound, bound)


def centre(reward_N_T: Sequence[Floats]) -> list[Floats]:
    """Each r_t less the mean over all tokens of the batch: a positive mean would reward length by itself.

    Source: average-reward reinforcement learning (Sutton and Barto 2018, section 10.3).
    """
    mean = float(np.concatenate([np.asarray(reward_T, np.float64) for reward_T in reward_N_T]).mean())
    return [reward_T - mean for reward_T in reward_N_T]


def normalise_length(reward_T: Floats) -> Floats:
    """r_t / T: a response's sum is its mean reward, so length alone gains nothing.

    Source: length-normalised reward, as in SimPO (Meng et al. 2024).
    """
    return reward_T / len(reward_T)


def add_potential(reward_T: Floats, potential_T: Floats, gamma: float) -> Floats:
    """r_t + gamma Phi(s_{t+1}) - Phi(s_t), with Phi 0 once the response has ended.

    `potential_T` holds Phi(s_t) of the state before each token. The optimal policy stays the same for any
    Phi with the same gamma (Ng, Harada and Russell 1999): tests/rewards/test_shaping.py, on a small MDP.
    """
    next_T = np.append(potential_T[1:], 0.0)
    return reward_T + gamma * next_T - potential_T


def likelihood_potential(logp_sft_T: Floats, coefficient: float) -> Floats:
    """Phi(s_t) = coefficient * (sum of log p_sft before t): how much of a likely response is already there.

    One potential that the service's answer is enough for.
    """
    before_T = np.cumsum(logp_sft_T, dtype=np.float64) - logp_sft_T
    return coefficient * before_T
