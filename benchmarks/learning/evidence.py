"""One unit of the evidence: a task and a seed, from pretraining to every arm of every case."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from arms import model_of, run_arm
from models import Step, Weights, copy_of, generate, logprobs, next_token
from numpy.typing import NDArray
from plan import SWEEP_SEEDS, Case, Unit
from tasks import Batch, Draw, Task, is_right
from training import Recipe, Sft, fine_tune, pretrain, stream

from densepath.demo.measure import locate_wrong_token, share_above

Said = Callable[[str], None]
Figures = dict[str, Any]

_DIGITS = 5  # significant ones that a file keeps


def measure_unit(unit: Unit, recipe: Recipe, said: Said) -> Figures:
    """Everything that this seed decides changes with it: weights, demonstrations, prompts, samples."""
    start = time.process_time()
    task = Task(unit.task, unit.length)
    held_out = Draw(task, recipe.held_out, stream(unit.seed, "held out"), held_out=True)
    base = copy_of(pretrain(task, recipe, unit.seed))
    base_figures = _exact_match(task, held_out, lambda: next_token(model_of(task, recipe, base)), unit.seed)
    said(f"{unit.name}: pretrained, {time.process_time() - start:.0f} s of CPU")
    cases = {}
    for case in unit.cases:
        cases[case.name] = _measure_case(task, base, case, recipe, held_out, unit.seed)
        said(f"{unit.name}: case {case.name}, {time.process_time() - start:.0f} s of CPU")
    return {
        "unit": asdict(unit),
        "recipe": asdict(recipe),
        "parameters": sum(weight.numel() for weight in base.values()),
        "cpu_s": _short(time.process_time() - start),
        "base": base_figures,
        "cases": cases,
    }


def _measure_case(
    task: Task, base: Weights, case: Case, recipe: Recipe, held_out: Draw, seed: int
) -> Figures:
    sft = fine_tune(task, base, case, recipe, seed)
    steps = round(case.dpr_steps * recipe.dpr_steps_share)
    arms = {}
    for arm in case.arms + (case.swept if seed in SWEEP_SEEDS else ()):
        outcome = run_arm(task, sft, arm, recipe, steps, seed)
        seen = {name: getattr(outcome, name) for name in ("reward", "kl", "cut")}
        match = _exact_match(task, held_out, outcome.start, seed)
        arms[arm.name] = match | {name: _short(x) for name, x in seen.items() if x is not None}
    return {
        "sft_steps": sft.steps,
        "validation_loss": _short(sft.validation_loss[sft.steps]),
        "validation_loss_base": _short(sft.validation_loss[0]),
        "sft": _exact_match(task, held_out, lambda: next_token(model_of(task, recipe, sft.last)), seed),
        "arms": arms,
        **_look_at_rewards(task, sft, recipe, held_out, seed),
    }


def _exact_match(task: Task, held_out: Draw, start: Callable[[], Step], seed: int) -> dict[str, float]:
    """Per cent of held-out prompts answered right, EOS included: sampled once each, and greedily."""
    prompt_N_P = held_out.responses(held_out.right_N_L).prompt_N_P
    sampler = torch.Generator().manual_seed(seed)
    batches = {
        name: generate(start(), prompt_N_P, task.response_length, generator)
        for name, generator in (("sampled", sampler), ("greedy", None))
    }
    return {
        name: _short(100 * is_right(batch.response_N_R, held_out.right_N_L).mean())
        for name, batch in batches.items()
    }


def _look_at_rewards(task: Task, sft: Sft, recipe: Recipe, held_out: Draw, seed: int) -> Figures:
    """`located`: how well each score finds the one wrong token of an answer.

    `right_above_other`: how often the right answer's sum is above that of another operation's answer.
    """
    rng = stream(seed, "wrong answers")
    wrong_N_L, index_N = held_out.wrong_symbol(rng)
    other_N_L = held_out.other(rng)
    differs_N = (other_N_L != held_out.right_N_L).any(axis=1)
    wrong, right, other = (
        _scores(task, sft, recipe, held_out.responses(answer_N_L))
        for answer_N_L in (wrong_N_L, held_out.right_N_L, other_N_L)
    )
    located, above = {}, {}
    for name in wrong:
        found = locate_wrong_token([-score_T for score_T in wrong[name]], index_N.tolist(), resamples=2)
        located[name] = {
            key: _short(getattr(found, key)) for key in ("auroc", "auroc_up_to", "share_highest")
        }
        sums = [np.array([score_T.sum() for score_T in scores[name]])[differs_N] for scores in (right, other)]
        above[name] = _short(share_above(*sums, resamples=2).share)
    return {"located": located, "right_above_other": above}


def _scores(task: Task, sft: Sft, recipe: Recipe, batch: Batch) -> dict[str, list[NDArray[np.float64]]]:
    ids_N_PR = torch.from_numpy(batch.ids_N_PR)
    logp: dict[float, NDArray[np.float64]] = {}
    with torch.inference_mode():
        for share in (0.0, 0.5, 1.0):
            model = model_of(task, recipe, sft.weights[share])
            logp[share] = logprobs(model, ids_N_PR, batch.prompt_length).double().numpy()
    scores = {
        "r_t, half reference": logp[1.0] - logp[0.5],
        "r_t, base reference": logp[1.0] - logp[0.0],
        "log p_sft": logp[1.0],
        "log p_ref, half": logp[0.5],
        "log p_ref, base": logp[0.0],
    }
    return {
        name: [score_R[mask_R] for score_R, mask_R in zip(score_N_R, batch.mask_N_R, strict=True)]
        for name, score_N_R in scores.items()
    }


def _short(x: float) -> float:
    return float(f"{float(x):.{_DIGITS}g}")
