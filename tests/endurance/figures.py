"""Figures of a run, as lines that a person reads."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from scipy.stats import linregress, t

_began = time.monotonic()


def say(text: str) -> None:
    """One line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _began:6.1f} s] {text}", flush=True)


def quantiles(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and maximum, in milliseconds."""
    if not seconds:
        return "none"
    median, late, most = np.quantile(seconds, [0.5, 0.99, 1.0]) * 1e3
    return f"n {len(seconds)}, median {median:.1f}, p99 {late:.1f}, max {most:.1f} ms"


class Findings:
    """What a run claims, and whether it holds."""

    def __init__(self, *, timed: bool = True) -> None:
        self.broken: list[str] = []
        self._timed = timed

    def claim(self, holds: bool, what: str) -> None:
        """Print one claim, and remember it where it does not hold."""
        say(f"{'holds ' if holds else 'BROKEN'} {what}")
        if not holds:
            self.broken.append(what)

    def claim_if_timed(self, holds: bool, what: str) -> None:
        """The same of a time or of memory, which a short run on a busy machine only prints."""
        if self._timed:
            self.claim(holds, what)
        else:
            say(f"       {what}")


def slope(done: Sequence[int], memory_mb: Sequence[float]) -> tuple[float, float]:
    """The growth of memory, in MB for 10,000 requests, and half of its interval of 95 %.

    A straight line through the samples after the first fifth, by least squares. Samples that follow each
    other are alike, so the means of at most 20 blocks of them are fitted, with Student's t.
    """
    first = int(np.searchsorted(done, 0.2 * done[-1]))
    blocks = np.array_split(np.array([done[first:], memory_mb[first:]]), min(20, len(done) - first), axis=1)
    x, y = np.array([block.mean(axis=1) for block in blocks]).T
    fit = linregress(x / 10_000, y)
    return float(fit.slope), float(fit.stderr * t.ppf(0.975, len(x) - 2))
