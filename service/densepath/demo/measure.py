"""How well a score finds the one wrong token of a response. Only arithmetic on arrays, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.trainer.evaluate.statistics import Floats, Interval, estimate_mean, interval_of, resample


@dataclass(frozen=True)
class Located:
    """The result of `locate_wrong_token`. Intervals are 95 % intervals from resampled responses.

    `auroc` is the chance that a wrong token scores higher than a right one, both drawn over all responses.
    `auroc_up_to` leaves out the tokens after the wrong one, whose context is already wrong.
    `share_highest` is the share of responses in which the wrong token alone scores highest.
    """

    auroc: float
    auroc_interval: Interval
    auroc_up_to: float
    auroc_up_to_interval: Interval
    share_highest: float
    share_highest_interval: Interval


def locate_wrong_token(
    score_N_T: Sequence[Floats], wrong_N: Sequence[int], *, resamples: int = 1000, seed: int = 0
) -> Located:
    """How well a score separates the wrong token of each response from its other tokens.

    `score_N_T` has one float array per response, with one score per token. A higher score means "more likely
    wrong". `wrong_N` has the index of the wrong token in each response. Raises ValueError if an index is out
    of range, a score is not finite, or there is no right token before any wrong one.
    """
    for score_T, wrong in zip(score_N_T, wrong_N, strict=True):
        if not 0 <= wrong < len(score_T):
            raise ValueError("wrong_N has an index outside its response")
        if not np.isfinite(score_T).all():
            raise ValueError("score_N_T has a score that is not finite")
    if not any(wrong > 0 for wrong in wrong_N):
        raise ValueError("no response has a right token before its wrong one: nothing to compare with")
    whole = _Tokens(score_N_T, wrong_N)
    up_to = _Tokens(
        [score_T[: wrong + 1] for score_T, wrong in zip(score_N_T, wrong_N, strict=True)], wrong_N
    )
    highest_N = np.array([_is_highest(s, w) for s, w in zip(score_N_T, wrong_N, strict=True)], dtype=float)

    count_R_N = resample(len(wrong_N), resamples, seed)
    one_N = np.ones(len(wrong_N), dtype=np.int64)
    return Located(
        whole.auroc(one_N),
        interval_of([whole.auroc(count_N) for count_N in count_R_N]),
        up_to.auroc(one_N),
        interval_of([up_to.auroc(count_N) for count_N in count_R_N]),
        float(highest_N.mean()),
        interval_of(count_R_N @ highest_N / len(wrong_N)),
    )


@dataclass(frozen=True)
class Share:
    """A share of responses, with its 95 % interval from resampled responses."""

    share: float
    interval: Interval


def share_above(right_N: Floats, wrong_N: Floats, *, resamples: int = 1000, seed: int = 0) -> Share:
    """How often `right_N` is above `wrong_N` at the same index. Both are float [N]. A tie counts half."""
    above_N = (right_N > wrong_N) + (right_N == wrong_N) / 2
    mean = estimate_mean(above_N, resamples=resamples, seed=seed)
    return Share(mean.value, mean.interval)


class _Tokens:
    """All tokens of all responses in the order of their scores, so that a resample needs no sorting."""

    def __init__(self, score_N_T: Sequence[Floats], wrong_N: Sequence[int]) -> None:
        score = np.concatenate(score_N_T)
        wrong = np.concatenate([np.arange(len(s)) == w for s, w in zip(score_N_T, wrong_N, strict=True)])
        owner = np.repeat(np.arange(len(wrong_N)), [len(s) for s in score_N_T])
        _, level = np.unique(score, return_inverse=True)
        order = np.argsort(level, kind="stable")
        self._wrong, self._owner = wrong[order], owner[order]
        self._starts = np.flatnonzero(np.diff(level[order], prepend=-1))  # of each run of equal scores

    def auroc(self, count_N: NDArray[np.int64]) -> float:
        """The AUROC if response `n` is counted `count_N[n]` times. A tie counts half.

        NaN if no right token is counted, as in a small resample whose wrong tokens are all first tokens.
        """
        weight = count_N[self._owner].astype(np.float64)
        positive = np.add.reduceat(np.where(self._wrong, weight, 0.0), self._starts)
        negative = np.add.reduceat(np.where(self._wrong, 0.0, weight), self._starts)
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        return float(positive @ (below + negative / 2) / pairs) if pairs else float("nan")


def _is_highest(score_T: Floats, wrong: int) -> bool:
    return bool((np.delete(score_T, wrong) < score_T[wrong]).all())
