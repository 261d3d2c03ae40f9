"""Means over prompts with bootstrap intervals: arithmetic on arrays, without a model.

Prompts are resampled, because a held-out set is a sample of prompts. Two checkpoints that answered the same
prompts are compared prompt by prompt. Several responses to one prompt are averaged first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Interval = tuple[float, float]

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean, with its interval from resampled prompts."""

    value: float
    interval: Interval


def estimate_mean(
    value_N: Floats, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The mean of one value per prompt, float [N], with the percentile interval that holds `level`."""
    count_R_N = resample(len(value_N), resamples, seed)
    return Estimate(float(value_N.mean()), interval_of(count_R_N @ value_N / len(value_N), level))


def estimate_difference(
    value_N: Floats, other_N: Floats, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The mean of `value_N - other_N`, paired: both float [N], with one prompt per index.

    Raises ValueError if their lengths differ.
    """
    if len(value_N) != len(other_N):
        raise ValueError("paired values must have the same length: each index is one prompt")
    return estimate_mean(value_N - other_N, level=level, resamples=resamples, seed=seed)


@lru_cache(maxsize=2)
def resample(size: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each of `size` items is drawn, int64 [resamples, size], read only; a row sums to `size`."""
    count_R_N = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
    count_R_N.flags.writeable = False
    return count_R_N


def interval_of(values: Sequence[float] | Floats, level: float = 0.95) -> Interval:
    """The interval with the middle `level` of resampled values. Undefined ones (NaN) are left out."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(values, (tail, 100 - tail))
    return float(low), float(high)
