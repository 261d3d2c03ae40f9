"""Means with 95 % t intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, and half the width of its 95 % interval; NaN where there are too few seeds."""

    value: float
    half_width: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.value) > self.half_width

    def points(self) -> str:
        """A change in points: `+6.2 [5.1, 7.3]`."""
        ends = (self.value, self.value - self.half_width, self.value + self.half_width)
        value, low, high = (round(end, 1) + 0.0 for end in ends)  # + 0.0: no "-0.0"
        return f"{value:+.1f} [{low:.1f}, {high:.1f}]"

    def share(self) -> str:
        """A figure between 0 and 1: `.842 ± .010`."""
        return f"{self.value:.3f} ± {self.half_width:.3f}"

    def level(self) -> str:
        """An accuracy in per cent: `36.5 ± 1.2`."""
        return f"{self.value:.1f} ± {self.half_width:.1f}"


def mean(value_N: Sequence[float]) -> Mean:
    """Over seeds. Differences of pairs give a paired interval."""
    count = len(value_N)
    if count == 0:
        raise ValueError("no seed was measured, so there is no mean")
    if count == 1:
        return Mean(float(value_N[0]), math.nan)
    quantile = float(student_t.ppf(0.975, count - 1))
    return Mean(float(np.mean(value_N)), quantile * float(np.std(value_N, ddof=1)) / math.sqrt(count))
