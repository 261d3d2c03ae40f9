"""The advantages of REINFORCE: returns with the KL to the SFT model, minus a baseline.

    r'_t = r_t - b (log pi(y_t | s_t) - log p_sft(y_t | s_t))       the reward minus its KL term
    G_t  = r'_t + gamma G_{t+1}                                     gamma 1: the paper's return-to-go
    A_t  = G_t - baseline_t                                         from the other responses only

With gamma 1 the expected gradient is that of E[sum of r_t] - b KL(pi || p_sft) over whole responses. With
gamma 0 each token is credited with its own reward and its own KL term. A baseline that does not depend on
the response itself leaves the expectation unchanged, so all three baselines are exact:
tests/trainer/reinforce/test_policy_gradient.py checks this by enumeration. Source: arXiv 2510.02493,
Dense-Path REINFORCE; RLOO for the leave-one-out mean.

Arrays are [N, T]: N responses, padded on the right to T tokens. The mask is True where there is a token.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]


class Baseline(StrEnum):
    """The mean return of other responses at the same position: of the batch, or of the same prompt."""

    NONE = "none"
    BATCH = "batch"
    LEAVE_ONE_OUT = "leave-one-out"


def advantages(
    return_N_T: Floats, mask_N_T: Mask, baseline: Baseline, prompt_N: NDArray[np.integer]
) -> NDArray[np.float64]:
    """A_t = G_t - baseline_t, float64 [N, T]; 0 where there is no token.

    `prompt_N` has the index of each response's prompt. The baseline at a position is the mean over the other
    responses that have a token there, and 0 if there are none.
    """
    if baseline is Baseline.NONE:
        return np.where(mask_N_T, return_N_T, 0.0).astype(np.float64)
    same_N_N = np.ones((len(prompt_N), len(prompt_N)))
    if baseline is Baseline.LEAVE_ONE_OUT:
        same_N_N = (prompt_N[:, None] == prompt_N).astype(np.float64)
    np.fill_diagonal(same_N_N, 0.0)
    others_N_T = same_N_N @ mask_N_T
    mean_N_T = same_N_N @ np.where(mask_N_T, return_N_T, 0.0) / np.maximum(others_N_T, 1.0)
    return np.where(mask_N_T, return_N_T - mean_N_T, 0.0)
