"""The AUROC of the wrong token, against cases small enough to count by hand."""

import numpy as np
import pytest

from densepath.demo.measure import locate_wrong_token, share_above


def _scores(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.float32) for row in rows]


def test_wrong_token_always_highest():
    found = locate_wrong_token(_scores([0, 5, 1], [0, 1, 7]), [1, 2])
    assert (found.auroc, found.auroc_up_to, found.share_highest) == (1, 1, 1)
    assert found.auroc_interval == (1, 1)


def test_pairs_are_counted_over_all_responses():
    # Wrong: 2 and 4. Right: 1, 3 and 0, 5. Of 8 pairs, 2 > 1, 0 and 4 > 1, 3, 0 are in order: 5.
    found = locate_wrong_token(_scores([1, 2, 3], [0, 5, 4]), [1, 2])
    assert found.auroc == 5 / 8
    # Without the tokens after the wrong one: right 1 and 0, 5; 2 > 1, 0 and 4 > 1, 0 of 6.
    assert found.auroc_up_to == 4 / 6
    assert found.share_highest == 0


def test_a_tie_counts_half_and_is_not_highest():
    found = locate_wrong_token(_scores([2, 2]), [1])
    assert found.auroc == 0.5
    assert found.share_highest == 0


def test_scores_without_information_are_near_one_half():
    rng = np.random.default_rng(0)
    found = locate_wrong_token(list(rng.normal(size=(400, 8))), [i % 8 for i in range(400)])
    low, high = found.auroc_interval
    assert low < 0.5 < high
    assert 0.02 < high - low < 0.12
    assert found.share_highest == pytest.approx(1 / 8, abs=0.05)


def test_interval_resamples_responses_not_tokens():
    # Half of the responses are perfect and half are the other way round: ten times the tokens in each
    # change nothing about how few responses there are.
    few = locate_wrong_token(_scores(*([[0, 1], [1, 0]] * 10)), [1] * 20)
    many = locate_wrong_token(_scores(*([[0] * 10 + [1], [1] * 10 + [0]] * 10)), [1, 1] * 10)
    assert few.auroc == 0.5
    assert many.share_highest == 0
    assert few.auroc_interval[1] - few.auroc_interval[0] > 0.3


@pytest.mark.parametrize(
    ("rows", "wrong", "message"),
    [
        ([[1, 2]], [2], "outside"),
        ([[1, 2]], [-1], "outside"),
        ([[1, float("nan")]], [1], "not finite"),
        ([[1, 2]], [0], "nothing to compare"),
        ([[1, 2], [1, 2]], [1], "zip"),
    ],
)
def test_refuses(rows, wrong, message):
    with pytest.raises(ValueError, match=message):
        locate_wrong_token(_scores(*rows), wrong)


def test_share_above_counts_pairs_of_one_index():
    found = share_above(np.array([1.0, 2, 3, 4]), np.array([0.0, 2, 9, 3]))
    assert found.share == 2.5 / 4
    assert found.interval[0] < found.share < found.interval[1]
    assert share_above(np.ones(3), np.zeros(3)).interval == (1, 1)
