"""Optional changes of the reward, all off by default: pure functions on one response's float arrays [T].

A batch applies the chosen ones in this order: clip, scale, centre, length normalisation, potential. The
paper's reward (arXiv 2510.02493, Eq. 5) is the unshaped one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def scale(reward_T: Floats, factor: float) -> Floats:
    """r_t * factor. With KL coefficient b, the optimum is that of factor 1 with b / factor."""
    return reward_T * factor


def clip(reward_T: Floats, bound: float) -> Floats:
    """r_t clipped to [-bound, bound] nats, so that one extreme token cannot outweigh a response.

    After clipping, sums no longer telescope into log-likelihoods. Source: reward clipping, Mnih et al. 2015.
    """
    return np.clip(reward_T, -bound, bound)


def centre(reward_N_T: Sequence[Floats]) -> list[Floats]:
    """Each r_t minus the mean over all tokens of the batch. A positive mean would reward length by itself.

    Source: average-reward reinforcement learning (Sutton and Barto 2018, section 10.3).
    """
    mean = float(np.concatenate([np.asarray(reward_T, np.float64) for reward_T in reward_N_T]).mean())
    return [reward_T - mean for reward_T in reward_N_T]


def normalise_length(reward_T: Floats) -> Floats:
    """r_t / T. A response's sum is then its mean reward, so length alone gains nothing.

    Source: length-normalised reward, as in SimPO (Meng et al. 2024).
    """
    return reward_T / len(reward_T)


def add_potential(reward_T: Floats, potential_T: Floats, gamma: float) -> Floats:
    """r_t + gamma Phi(s_{t+1}) - Phi(s_t), where Phi is 0 after the end of the response.

    `potential_T` holds Phi(s_t) of the state before each token. For any Phi, the optimal policy stays
    the same if gamma is the same (Ng, Harada and Russell 1999). tests/rewards/test_shaping.py checks this on
    a small MDP.
    """
    next_T = np.append(potential_T[1:], 0.0)
    return reward_T + gamma * next_T - potential_T


def likelihood_potential(logp_sft_T: Floats, coefficient: float) -> Floats:
    """Phi(s_t) = coefficient * (sum of log p_sft before t): how likely the response is so far.

    The service's answer is enough to compute this potential.
    """
    before_T = np.cumsum(logp_sft_T, dtype=np.float64) - logp_sft_T
    return coefficient * before_T
