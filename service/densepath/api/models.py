"""The models that the compatible routes score by: `sft`, `reference`, and `dpr-teacher` made of both.

The teacher's log-probability is `t = (1 + 1/b) log p_sft - (1/b) log p_reference`: a distillation client that
maximises `t - log pi` of its own samples maximises `r - b (log pi - log p_sft)`, divided by b, which is the
dense reward with the KL to SFT that `densepath train --kl b` has. Its log-probabilities are not normalised.
"""

from __future__ import annotations

import asyncio

import numpy as np

from densepath.api.engine_calls import count_tokens, score_sequence, scoring, together
from densepath.api.service import Service
from densepath.engine.scorer import Ranked, Scored, View
from densepath.errors import InternalError, ModelNotFoundError, NonFiniteScoreError
from densepath.sequences import Sequence

MODELS = ("sft", "reference", "dpr-teacher")


def model_view(name: str | None, service: Service, *, top: int = 0) -> View:
    """The log-probabilities of a model by its name, `NAME/sft` and the like included; the SFT's for None."""
    match (name or "sft").removeprefix(f"{service.model_name}/"):
        case "sft":
            return View(1.0, 0.0, top)
        case "reference":
            return View(0.0, 1.0, top)
        case "dpr-teacher":
            return View(1 + 1 / service.teacher_kl, -1 / service.teacher_kl, top)
    names = ", ".join(f"`{each}`" for each in MODELS)
    raise ModelNotFoundError(f"log-probabilities here are those of the models {names}", param="model")


def check_name(name: str | None, service: Service) -> None:
    """Refuse a name that is neither the pair's nor that of one of its models."""
    if name != service.model_name:
        model_view(name, service)


Score = tuple[Scored, Ranked]


async def score_view(sequences: list[Sequence], view: View, service: Service) -> list[Score | None]:
    """The scores of sequences, and their tokens as the view ranks them: all, or an error. None for a
    sequence of which nothing is scored.

    Raises:
        NonFiniteScoreError: a scored token's log-probability is no number.
        InvalidItemError: an id that is out of range.
        ContextLengthExceededError: a sequence that is too long.
        OverloadedError: there is no room for them now.
    """
    checked = [service.check(each) for each in sequences]
    due = {i: each for i, each in enumerate(checked) if len(each.positions_T)}
    tokens = sum(len(sequence.token_ids_L) for sequence in due.values())
    with scoring(len(due), tokens, service) as ticket:
        works = (score_sequence(each, ticket, service, view) for each in due.values())
        async with together(works) as tasks:
            scores = dict(zip(due, await asyncio.gather(*tasks), strict=True))
    count_tokens(list(due.values()), list(scores.values()), service)
    ranked = {i: (scored, _finite(i, scored)) for i, scored in scores.items()}
    return [ranked.get(i) for i in range(len(sequences))]


def _finite(index: int, scored: Scored) -> Ranked:
    ranked = scored.ranked
    if ranked is None:
        raise InternalError("the engine ranked no tokens")
    for logp_T in (scored.logp_sft_T, scored.logp_reference_T, ranked.logp_T):
        finite_T = np.isfinite(logp_T)
        if not finite_T.all():
            raise NonFiniteScoreError(
                f"the log-probability of scored token {int((~finite_T).argmax())} of prompt {index} "
                "is not finite, so the prompt has no score"
            )
    return ranked
