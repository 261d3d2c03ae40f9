"""What the figures of a probe mean: gains over plain SFT, and the advice that follows.

Decoding with a reference also sharpens. If the mode of p_sft is right, samples from p_sft^(1 + alpha),
without a reference, are right more often than samples from p_sft. To separate this gain from that of the
reference, each alpha is also decoded without a reference. Sharpening does not change greedy decoding, so a
greedy gain comes from the reference only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import densepath
from densepath.trainer.evaluate.responses import Answers, mean_score, summary
from densepath.trainer.evaluate.settings import ProbeSettings
from densepath.trainer.evaluate.statistics import estimate_difference
from densepath.trainer.evaluate.tables import GREEDY, SAMPLED, points

#: Many, because an interval that holds for all choices together needs quantiles far in the tails.
RESAMPLES = 10_000

RULE = (
    "for each way of decoding, the choice whose gain over plain SFT has the highest lower bound, if that "
    "bound is above 0; the bounds are those of intervals that hold for all choices and both ways together "
    "with 95 % (Bonferroni)"
)

Found = dict[str, Any]

_DECODING = {GREEDY: "greedy decoding", SAMPLED: "sampling"}


@dataclass(frozen=True)
class Choice:
    """A reference, an alpha and the answers with both. Plain SFT is alpha 0 without a reference."""

    reference: str | None
    alpha: float
    greedy: Answers
    sampled: Sequence[Answers]  # one per seed

    def rounds(self) -> Mapping[str, Sequence[Answers]]:
        """The answers by how they were decoded."""
        return {GREEDY: [self.greedy], SAMPLED: self.sampled}


def probe_report(choices: Sequence[Choice], prompts: int, settings: ProbeSettings) -> Found:
    """All results as JSON values. `choices` begins with plain SFT."""
    plain, *others = choices
    comparisons = 2 * sum(choice.reference is not None for choice in others)
    found = [_figures(choice, plain, comparisons) for choice in others]
    sharpened = {one["alpha"]: one for one in found if one["reference"] is None}
    offered = [one for one in found if one["reference"] is not None]
    return {
        "kind": "probe",
        "densepath": densepath.__version__,
        "settings": asdict(settings),
        "prompts": prompts,
        "intervals": "95 %, bootstrap over prompts, gains paired by prompt, samples averaged first",
        "plain": {how: summary(answers) for how, answers in plain.rounds().items()},
        "sharpened": list(sharpened.values()),
        "choices": offered,
        "recommendation": recommend(offered, sharpened),
    }


def recommend(offered: Sequence[Found], sharpened: Mapping[float, Found]) -> Found:
    """The advice by `RULE`: for each way of decoding, a reference and an alpha, or None for both.

    `sharpened` has the results of each alpha without a reference.
    """
    advice: Found = {"rule": RULE}
    sentences = []
    for how in (GREEDY, SAMPLED):
        best = max(offered, key=lambda found: float(found[how]["joint_interval"][0]))
        promised = best[how]["joint_interval"][0] > 0
        gain = points({"value": best[how]["gain"]["value"], "interval": best[how]["joint_interval"]})
        where = f"reference {best['reference']} with alpha {best['alpha']:g} (b = {best['b']:g})"
        if promised:
            sentence = f"with {_DECODING[how]}, {where} promises most: {gain} points over plain SFT"
        else:
            sentence = (
                f"with {_DECODING[how]}, no reference promises a gain: "
                f"{where} has the best bound, {gain} points"
            )
        if promised and how == SAMPLED:
            alone = points(sharpened[best["alpha"]][SAMPLED]["gain"])
            sentence += f"; the same alpha without a reference, which only sharpens, gives {alone}"
        advice[how] = {
            "reference": best["reference"] if promised else None,
            "alpha": best["alpha"] if promised else None,
        }
        sentences.append(sentence)
    return {**advice, "sentence": ". ".join(s[0].upper() + s[1:] for s in sentences) + "."}


def _figures(choice: Choice, plain: Choice, comparisons: int) -> Found:
    found: Found = {"reference": choice.reference, "alpha": choice.alpha, "b": 1 / choice.alpha}
    for how, answers in choice.rounds().items():
        score_N, plain_N = mean_score(answers), mean_score(plain.rounds()[how])
        gain = estimate_difference(score_N, plain_N, resamples=RESAMPLES)
        joint = estimate_difference(score_N, plain_N, level=1 - 0.05 / comparisons, resamples=RESAMPLES)
        found[how] = {**summary(answers), "gain": asdict(gain), "joint_interval": joint.interval}
    return found
