"""Intervals that resample prompts, against formulas and against chance."""

import numpy as np
import pytest

from densepath.trainer.evaluate.statistics import estimate_difference, estimate_mean, interval_of, resample


def test_interval_of_a_mean_is_that_of_the_normal_formula():
    value_N = np.random.default_rng(1).normal(3, 2, size=400)
    found = estimate_mean(value_N, resamples=10_000)
    half = 1.96 * value_N.std() / np.sqrt(400)
    assert found.value == value_N.mean()
    assert found.interval == pytest.approx((found.value - half, found.value + half), abs=0.03 * half)


def test_intervals_hold_their_level():
    covered = 0
    for seed in range(400):
        right_N = (np.random.default_rng(seed).random(80) < 0.3).astype(float)
        low, high = estimate_mean(right_N, resamples=500, seed=seed).interval
        covered += low <= 0.3 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_pairing_takes_out_what_both_share():
    rng = np.random.default_rng(2)
    hard_N = rng.normal(0, 10, size=200)
    value_N, other_N = hard_N + 1 + rng.normal(0, 0.1, 200), hard_N
    found = estimate_difference(value_N, other_N)
    assert 0.95 < found.interval[0] < found.value < found.interval[1] < 1.05
    low, high = estimate_difference(value_N, other_N[::-1].copy()).interval
    assert high - low > 1, "prompts that are not paired differ by how hard they are"


def test_the_difference_of_a_thing_and_itself_is_zero():
    value_N = np.random.default_rng(3).random(50)
    assert estimate_difference(value_N, value_N).interval == (0, 0)


def test_pairs_must_be_of_one_length():
    with pytest.raises(ValueError, match="same length"):
        estimate_difference(np.ones(3), np.ones(4))


def test_a_resample_draws_as_many_as_there_are_and_cannot_be_changed():
    count_R_N = resample(7, 30, 0)
    assert count_R_N.shape == (30, 7)
    assert (count_R_N.sum(axis=1) == 7).all()
    with pytest.raises(ValueError, match="read-only"):
        count_R_N[0, 0] = 9


def test_level_moves_the_bounds():
    values = np.arange(1001.0)
    assert interval_of(values) == pytest.approx((25, 975))
    assert interval_of(values, 0.5) == pytest.approx((250, 750))
