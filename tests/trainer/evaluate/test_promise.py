"""What a probe's figures advise, on answers made up so that it is known."""

import numpy as np

from densepath.trainer.evaluate.promise import Choice, probe_report
from densepath.trainer.evaluate.responses import Answers
from densepath.trainer.evaluate.settings import ProbeSettings

N = 200


def _answers(score_N: np.ndarray) -> Answers:
    one_N = np.ones(N, dtype=np.int64)
    return Answers(("",) * N, score_N.astype(np.float64), one_N, one_N.astype(bool))


def _choice(reference: str | None, alpha: float, greedy: np.ndarray, sampled: np.ndarray) -> Choice:
    return Choice(reference, alpha, _answers(greedy), [_answers(sampled)])


def _report(*choices: Choice, plain: np.ndarray):
    alone = [_choice(None, alpha, plain, plain) for alpha in sorted({choice.alpha for choice in choices})]
    found = probe_report([_choice(None, 0.0, plain, plain), *alone, *choices], N, ProbeSettings(prompts="p"))
    return found, found["recommendation"]


def _right(count: int) -> np.ndarray:
    """The first `count` prompts are right."""
    return (np.arange(N) < count).astype(float)


def test_the_highest_lower_bound_is_advised_for_each_way_of_decoding():
    report, advice = _report(
        _choice("base", 1.0, greedy=_right(60), sampled=_right(90)),
        _choice("base", 2.0, greedy=_right(100), sampled=_right(70)),
        _choice("half", 1.0, greedy=_right(50), sampled=_right(52)),
        plain=_right(50),
    )
    assert advice["greedy"] == {"reference": "base", "alpha": 2.0}
    assert advice["sampled"] == {"reference": "base", "alpha": 1.0}
    assert (
        "With greedy decoding, reference base with alpha 2 (b = 0.5) promises most: +25.0"
        in advice["sentence"]
    )
    assert "With sampling, reference base with alpha 1 (b = 1) promises most: +20.0" in advice["sentence"]
    assert [choice["sampled"]["gain"]["value"] for choice in report["choices"]] == [0.2, 0.1, 0.01]


def test_a_larger_gain_that_is_noisy_is_less_than_a_sure_one():
    at_N = np.arange(N)
    plain = _right(100)
    noisy = np.where(at_N < 80, 0.0, 1.0)  # 80 right ones become wrong, and all wrong ones right
    sure = _right(115)
    report, advice = _report(
        _choice("noisy", 1.0, noisy, noisy), _choice("sure", 1.0, sure, sure), plain=plain
    )
    noisy_gain, sure_gain = (choice["sampled"]["gain"]["value"] for choice in report["choices"])
    assert noisy_gain > sure_gain
    assert advice["sampled"]["reference"] == "sure"


def test_the_bound_of_a_choice_is_wider_among_more_choices():
    plain = _right(100)
    some = plain.copy()
    some[:3], some[100:113] = 0.0, 1.0  # 13 more right and 3 fewer: 95 % [+1.1, +8.9] points by itself
    offered = _choice("some", 1.0, some, some)
    _, alone = _report(offered, plain=plain)
    report, among = _report(
        *(_choice(f"same {n}", 1.0, plain, plain) for n in range(9)), offered, plain=plain
    )
    assert report["choices"][-1]["sampled"]["gain"]["interval"][0] > 0
    assert alone["sampled"]["reference"] == "some"
    assert among["sampled"]["reference"] is None


def test_no_gain_is_promised_where_none_is_there():
    promised = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        right = [(rng.random(N) < 0.4).astype(float) for _ in range(13)]
        choices = [_choice(f"reference {n}", 1.0, right[n], right[n + 6]) for n in range(6)]
        _, advice = _report(*choices, plain=right[12])
        promised += advice["greedy"]["reference"] is not None or advice["sampled"]["reference"] is not None
    assert promised <= 4, "12 comparisons at 95 % each would promise something in a quarter of these"


def test_in_words_when_nothing_is_promised():
    _, advice = _report(_choice("half", 0.5, _right(49), _right(51)), plain=_right(50))
    assert advice["greedy"] == advice["sampled"] == {"reference": None, "alpha": None}
    assert "With greedy decoding, no reference promises a gain: reference half" in advice["sentence"]
    assert "has the best bound" in advice["sentence"]
    assert "With sampling, no reference promises a gain" in advice["sentence"]


def test_what_sharpening_alone_gives_is_said_beside_a_sampled_gain():
    plain = _choice(None, 0.0, _right(50), _right(50))
    alone = _choice(None, 1.0, _right(50), _right(120))
    base = _choice("base", 1.0, _right(50), _right(80))
    report = probe_report([plain, alone, base], N, ProbeSettings(prompts="p"))
    assert "without a reference, which only sharpens, gives +35.0" in report["recommendation"]["sentence"]
    assert report["sharpened"][0]["sampled"]["gain"]["value"] == 0.35
    assert [choice["reference"] for choice in report["choices"]] == ["base"]
