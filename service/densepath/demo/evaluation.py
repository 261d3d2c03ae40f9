"""How the three checkpoints answer held-out prompts, and what their rewards show about wrong answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from densepath.demo.measure import locate_wrong_token, share_above
from densepath.demo.recipe import REFERENCE_BASE, REFERENCE_HALF, SFT, Recipe
from densepath.demo.scoring import exact_match, response_logprobs
from densepath.demo.task import Example, another_operation, corrupt
from densepath.demo.training import Weights

LogProbs = list[NDArray[np.float32]]


def evaluate(
    model: LlamaForCausalLM,
    weights: Mapping[str, Weights],
    examples: Sequence[Example],
    tokenizer: Any,
    recipe: Recipe,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Each checkpoint's exact match, and what each score shows about two kinds of wrong answers.

    `wrong_token`: one letter of each right response is replaced by another. Does the score find this token?
    `right_above_other`: is the sum of the right response above that of another operation's answer?
    """
    rng = random.Random(f"wrong answers {recipe.seed}")  # noqa: S311
    responses_and_index = [corrupt(example.response, rng) for example in examples]
    wrong_N = [index for _, index in responses_and_index]  # a letter is a token
    corrupted = [Example(e.messages, r) for e, (r, _) in zip(examples, responses_and_index, strict=True)]
    other = [another_operation(example, rng) for example in examples]
    match: dict[str, dict[str, float]] = {}
    logp: dict[str, list[LogProbs]] = {}
    for done, (name, of_model) in enumerate(weights.items()):
        progress(done, len(weights) + 1)
        model.load_state_dict(of_model)
        match[name] = {
            "sampled": exact_match(model, examples, tokenizer, sample=True, seed=recipe.seed),
            "greedy": exact_match(model, examples, tokenizer, sample=False),
        }
        logp[name] = [
            response_logprobs(model, answers, tokenizer) for answers in (corrupted, examples, other)
        ]
    progress(len(weights), len(weights) + 1)
    scores = _scores(logp)
    located = {
        name: asdict(locate_wrong_token([-score_T for score_T in score_N_T], wrong_N))
        for name, (score_N_T, _, _) in scores.items()
    }
    above = {
        name: asdict(share_above(_sums(right_N_T), _sums(other_N_T)))
        for name, (_, right_N_T, other_N_T) in scores.items()
    }
    progress(len(weights) + 1, len(weights) + 1)
    return {"exact_match": match, "wrong_token": located, "right_above_other": above}


def _scores(logp: Mapping[str, list[LogProbs]]) -> dict[str, list[LogProbs]]:
    """The rewards against either reference, and each model's log-probability alone."""
    rewards = {
        f"r_t, {name}": [
            [a - b for a, b in zip(sft_N_T, reference_N_T, strict=True)]
            for sft_N_T, reference_N_T in zip(logp[SFT], logp[name], strict=True)
        ]
        for name in (REFERENCE_HALF, REFERENCE_BASE)
    }
    return rewards | {f"log p, {name}": of_model for name, of_model in logp.items()}


def _sums(score_N_T: LogProbs) -> NDArray[np.float64]:
    return np.array([score_T.sum(dtype=np.float64) for score_T in score_N_T])
