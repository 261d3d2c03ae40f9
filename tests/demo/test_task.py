"""The operations, the ways in which answers go wrong, and what is held out."""

import random
from itertools import islice

import pytest

from densepath.demo.recipe import Mixture, Recipe
from densepath.demo.task import HELD_OUT_WORDS, OPERATIONS, another_operation, corrupt, draw, held_out


@pytest.mark.parametrize(
    ("operation", "response"),
    [
        ("copy", "planet"),
        ("upper", "PLANET"),
        ("reverse", "tenalp"),
        ("sort", "aelnpt"),
        ("rotate", "lanetp"),
        ("next", "qmbofu"),
    ],
)
def test_operation(operation, response):
    assert OPERATIONS[operation]("planet") == response


def test_next_wraps_around():
    assert OPERATIONS["next"]("zz") == "aa"


def _right(example) -> str:
    operation, word = example.messages[0]["content"].split(": ")
    return OPERATIONS[operation](word)


def test_mixture_of_right_answers_only():
    examples = list(islice(draw(Mixture(1, 0, 0, 0, 0), random.Random(0)), 200))
    assert all(example.response == _right(example) for example in examples)


@pytest.mark.parametrize(
    ("mixture", "wrong"),
    [
        (Mixture(0, 1, 0, 0, 0), lambda right, response: len(response) == len(right)),
        (Mixture(0, 0, 1, 0, 0), lambda right, r: sum(a != b for a, b in zip(right, r, strict=True)) == 1),
        (Mixture(0, 0, 0, 1, 0), lambda right, response: response == right + " ok"),
        (Mixture(0, 0, 0, 0, 1), lambda right, r: 0 < len(r) < len(right) and right.startswith(r)),
    ],
)
def test_each_kind_of_wrong_answer(mixture, wrong):
    for example in islice(draw(mixture, random.Random(0)), 200):
        assert wrong(_right(example), example.response)


def test_mixture_has_its_shares():
    examples = list(islice(draw(Recipe().demonstrations, random.Random(0)), 4000))
    share = sum(example.response == _right(example) for example in examples) / len(examples)
    assert share == pytest.approx(Recipe().demonstrations.right, abs=0.03)


@pytest.mark.parametrize("shares", [(0.5, 0.4, 0, 0, 0), (1.5, -0.5, 0, 0, 0)])
def test_shares_must_be_a_distribution(shares):
    with pytest.raises(ValueError, match="sum to 1"):
        Mixture(*shares)


def test_corrupt_changes_one_letter_of_the_same_case():
    rng = random.Random(0)
    for right in ("planet", "PLANET") * 50:
        response, index = corrupt(right, rng)
        assert [i for i in range(6) if response[i] != right[i]] == [index]
        assert response[index].isupper() == right[index].isupper()


def test_another_operation_is_never_the_right_one():
    rng = random.Random(0)
    for example in held_out(360, rng):
        wrong = another_operation(example, rng)
        word = example.messages[0]["content"].split(": ")[1]
        assert wrong.messages == example.messages
        assert wrong.response != example.response
        assert wrong.response in {operate(word) for operate in OPERATIONS.values()}


def test_held_out_words_are_never_drawn():
    words = {example.messages[0]["content"].split(": ")[1] for example in held_out(360, random.Random(0))}
    assert words == HELD_OUT_WORDS
    # A generator that draws nothing but one held-out word and one other shows the rule at work.
    rng = _Words(["planet", "abcdef"])
    assert next(draw(Mixture(1, 0, 0, 0, 0), rng)).messages[0]["content"].endswith(": abcdef")


class _Words(random.Random):
    def __init__(self, words: list[str]) -> None:
        super().__init__(0)
        self._words = iter(words)

    def choices(self, population, weights=None, *, cum_weights=None, k=1):
        if k == 6:
            return list(next(self._words))
        return super().choices(population, weights, cum_weights=cum_weights, k=k)
