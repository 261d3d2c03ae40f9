"""The arithmetic of dense rewards: pure functions on arrays, no I/O.

Source: "Beyond Imitation: Recovering Dense Rewards from Demonstrations", arXiv 2510.02493, Eq. 5.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from densepath.errors import NonFiniteScoreError

Float32 = NDArray[np.float32]


def rewards(logp_sft_T: Float32, logp_reference_T: Float32) -> Float32:
    """r_t = log p_sft(y_t | y_<t) − log p_reference(y_t | y_<t), float32 [T], in nats (Eq. 5).

    Raises NonFiniteScoreError if a log-probability is NaN or infinite, or so large that a reward or a return
    would be infinite. A failed score is never a number.
    """
    for name, logp_T in (("sft", logp_sft_T), ("reference", logp_reference_T)):
        finite_T = np.isfinite(logp_T)
        if not finite_T.all():
            raise NonFiniteScoreError(
                f"the {name} log-probability of scored token {int((~finite_T).argmax())} is not finite, "
                "so this item has no rewards"
            )
    with np.errstate(over="ignore"):
        reward_T = (logp_sft_T - logp_reference_T).astype(np.float32)
    if np.sum(np.abs(reward_T), dtype=np.float64) > np.finfo(np.float32).max:  # no return is larger than this
        raise NonFiniteScoreError("the rewards are too large for float32, so this item has no rewards")
    return reward_T


def returns(reward_T: Float32, gamma: float) -> Float32:
    """G_t = r_t + gamma G_{t+1}, float32 [T], summed in float64; gamma 1 is the paper's return-to-go."""
    return returns_to_go(reward_T, gamma).astype(np.float32)


def returns_to_go(reward_T: NDArray[np.floating], gamma: float) -> NDArray[np.float64]:
    """G_t = r_t + gamma G_{t+1} along the last axis, float64.

    It also takes several responses, [N, T], padded on the right with rewards of 0. Their returns are 0 there
    too.
    """
    if gamma == 0.0:
        return reward_T.astype(np.float64)
    if gamma == 1.0:
        return np.cumsum(reward_T[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]
    return_T = reward_T.astype(np.float64)
    time_first = np.moveaxis(return_T, -1, 0)  # a view
    last_to_first = time_first[::-1].tolist() if reward_T.ndim == 1 else time_first[::-1]
    time_first[::-1] = list(accumulate(last_to_first, lambda after, reward: reward + gamma * after))
    return return_T


def total(reward_T: Float32) -> float:
    """The sum of the item's rewards, in nats, accumulated in float64."""
    return float(np.sum(reward_T, dtype=np.float64))
