"""Computes what the page shows of a run: extremes, the time of each phase, and the bias check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from densepath.trainer.report.run import Float64, Run, Sample
from densepath.trainer.run_files import PHASES

NORMAL_95 = 1.959964  # a normal variable is within this many standard deviations in 95 % of cases


@dataclass(frozen=True)
class At:
    """A figure and its step."""

    value: float
    step: int


@dataclass(frozen=True)
class Extremes:
    """The first, the last and the highest value, over the steps that have the figure."""

    first: At
    last: At
    highest: At


def extremes(run: Run, value_S: Float64) -> Extremes | None:
    """First, last and highest of `value_S`, float64 [S] with NaN if a step has none; None if all are NaN."""
    have = np.flatnonzero(np.isfinite(value_S))
    if not len(have):
        return None
    highest = have[value_S[have].argmax()]
    at = [At(float(value_S[index]), int(run.step_S[index])) for index in (have[0], have[-1], highest)]
    return Extremes(*at)


@dataclass(frozen=True)
class PhaseTime:
    """A phase: its mean seconds per step, and its share of the step."""

    name: str
    seconds: float
    share: float


def phase_seconds(run: Run) -> dict[str, Float64]:
    """Seconds of every phase, float64 [S]; `other` is the rest of each step's total, at least 0."""
    by_phase: dict[str, Float64] = {phase: np.nan_to_num(run.column(phase, "seconds")) for phase in PHASES}
    spent_S = np.sum(list(by_phase.values()), axis=0)
    total_S = np.nan_to_num(run.column("total", "seconds"))
    return {**by_phase, "other": np.maximum(total_S - spent_S, 0.0)}


def time_split(run: Run) -> tuple[PhaseTime, ...]:
    """The phases and `other` that took time, as means over the steps."""
    mean = {name: float(second_S.mean()) for name, second_S in phase_seconds(run).items()}
    total = sum(mean.values())
    return tuple(PhaseTime(name, seconds, seconds / total) for name, seconds in mean.items() if seconds)


@dataclass(frozen=True)
class Correlation:
    """Pearson's, with its 95 % interval by Fisher's transformation, which assumes independent responses."""

    value: float
    interval: tuple[float, float]
    count: int


def correlation(x_N: Float64, y_N: Float64, *, groups: int = 1) -> Correlation | None:
    """Pearson's correlation of two float64 [N]; None for fewer than four free values or a constant.

    `groups` is how many means were subtracted from both. Each beyond the first costs a degree of freedom.
    """
    free = len(x_N) - groups - 2  # the usual N − 3, for one group
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = float(np.sqrt((x_N @ x_N) * (y_N @ y_N)))
    if free < 1 or not np.isfinite(scale) or scale < 1e-12:
        return None
    value = float(np.clip(x_N @ y_N / scale, -1.0, 1.0))
    middle, half = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12)), NORMAL_95 / np.sqrt(free)
    return Correlation(value, (float(np.tanh(middle - half)), float(np.tanh(middle + half))), len(x_N))


@dataclass(frozen=True)
class LengthBias:
    """Correlation of a response's sum of rewards with its length.

    Both may drift with the policy during a run. `overall` includes this drift; `within_steps` subtracts the
    means of each step first.
    """

    overall: Correlation | None
    within_steps: Correlation | None


def length_bias(samples: Sequence[Sample]) -> LengthBias:
    """The bias check on `samples`, of any steps."""
    length_N, sum_N = lengths_and_sums(samples)
    step_N = np.array([sample.step for sample in samples])
    _, group_N = np.unique(step_N, return_inverse=True)
    size_G = np.bincount(group_N)
    length_within_N = length_N - (np.bincount(group_N, length_N) / size_G)[group_N]
    sum_within_N = sum_N - (np.bincount(group_N, sum_N) / size_G)[group_N]
    return LengthBias(
        correlation(length_N, sum_N), correlation(length_within_N, sum_within_N, groups=len(size_G))
    )


def lengths_and_sums(samples: Sequence[Sample]) -> tuple[Float64, Float64]:
    """Response tokens and sums of rewards (nats), float64 [N] each."""
    return (
        np.array([len(sample.tokens) for sample in samples], dtype=np.float64),
        np.array([sample.sum for sample in samples], dtype=np.float64),
    )


@dataclass(frozen=True, eq=False)
class ByPosition:
    """Figures over the responses that have a token at each of T positions, from the first token on."""

    mean_T: Float64  # nats
    half_interval_T: Float64  # of the mean's 95 % interval, nats; NaN if only one response is that long
    count_T: Float64


def reward_by_position(samples: Iterable[Sample]) -> ByPosition:
    """Mean token reward at every position of the response."""
    reward_N_T = [sample.reward_T for sample in samples]
    position = np.concatenate([np.arange(len(reward_T)) for reward_T in reward_N_T])
    reward = np.concatenate(reward_N_T)
    count_T = np.bincount(position).astype(np.float64)
    mean_T = np.bincount(position, reward) / count_T
    squares_T = np.bincount(position, (reward - mean_T[position]) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        half_T = NORMAL_95 * np.sqrt(squares_T / (count_T - 1) / count_T)
    return ByPosition(mean_T, half_T, count_T)


def spread(count: int, most: int) -> list[int]:
    """At most `most` evenly spaced indices of `count` things, with the first and the last."""
    return sorted({round(float(place)) for place in np.linspace(0, count - 1, min(count, most))})
