"""`densepath probe`: what a reference promises over plain SFT, before any RL.

Maximising the expected sum of r_t = log pi_sft - log pi_ref, minus b KL(pi || pi_sft), has the optimum

    pi ∝ pi_sft (pi_sft / pi_ref)^alpha,    alpha = 1/b,

over whole responses: pi_sft exp(sum of r_t / b), normalised. Decoding it token by token needs no training:

    log p = (1 + alpha) log p_sft - alpha log p_ref + constant.

This is a different distribution, because each token is normalised by itself, but it changes p_sft in the same
direction. If it gains nothing, the ratio of the pair hardly separates better responses from worse ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from densepath.errors import InvalidRequestError
from densepath.pair.adapters import Say, whole_checkpoint
from densepath.pair.pair import load_pair
from densepath.pair.runs import read_sft_run
from densepath.trainer.checking import Checker
from densepath.trainer.evaluate.promise import Choice, probe_report
from densepath.trainer.evaluate.responses import (
    Answers,
    Generate,
    Subject,
    answer,
    name_directories,
    open_subject,
    require_room,
)
from densepath.trainer.evaluate.settings import ProbeSettings
from densepath.trainer.evaluate.tables import probe_table, progress_bar, require_place, write_json
from densepath.trainer.prompts import read_prompts
from densepath.trainer.rollouts.decoding import decode
from densepath.trainer.types import Prompt, Rollout

BATCH = 64  # responses decoded together

#: A model and its exponent in the product that is decoded from.
WeightedModel = tuple[float, Any]


def run_probe(settings: ProbeSettings, say: Console, show: Console) -> None:
    """Run `densepath probe`: progress goes to `say`, results go to `show` and to the output file."""
    require_place(settings.output)
    alphas = parse_alphas(settings.alphas)
    sft, references = directories(settings, partial(say.print, markup=False, soft_wrap=True))
    pairs = [load_pair(sft, reference) for reference in references.values()]
    subject = open_subject(sft, sft.name)
    subject = replace(subject, context_length=min(pair.context_length for pair in pairs))
    prompts = draw(read_prompts(settings.prompts, subject.tokenizer), settings.count)
    checker = Checker(settings.checker)
    checker.require_answers(prompts)
    require_room(prompts, subject, settings.max_new_tokens)
    choices = probe(subject, references, alphas, prompts, checker, settings, say)
    report = probe_report(choices, len(prompts), settings)
    show.print(probe_table(report))
    show.print(report["recommendation"]["sentence"], soft_wrap=True, markup=False)
    if settings.output is not None:
        write_json(settings.output, report)


def directories(settings: ProbeSettings, say: Say) -> tuple[Path, dict[str, Path]]:
    """The directory of the SFT checkpoint, and those of the references by name. Adapters are merged."""
    if settings.pair is None and settings.sft is not None and settings.reference:
        names = name_directories(settings.reference)
        references = [whole_checkpoint(each, None, say) for each in settings.reference]
        return whole_checkpoint(settings.sft, None, say), dict(zip(names, references, strict=True))
    if settings.pair is None or settings.sft is not None or settings.reference:
        raise InvalidRequestError("give either --pair RUN, or both --sft and at least one --reference")
    run = read_sft_run(settings.pair)
    return run.final, {one.directory.name: one.directory for one in run.references}


def parse_alphas(text: str) -> list[float]:
    """The numbers in a text such as `0.5,1,2`. Raises InvalidRequestError for one that is not above 0."""
    try:
        alphas = sorted({float(word) for word in text.split(",")})
    except ValueError:
        alphas = []
    if not alphas or not all(alpha > 0 and math.isfinite(alpha) for alpha in alphas):
        raise InvalidRequestError(
            f"--alphas {text} must be numbers above 0, separated by commas, as in 0.5,1,2"
        )
    return alphas


def draw(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` random prompts, always the same ones, in their order. All of them if there are fewer."""
    drawn = np.random.default_rng(0).permutation(len(prompts))[:count]
    return [prompts[n] for n in sorted(drawn.tolist())]


def probe(
    subject: Subject,
    references: Mapping[str, Path],
    alphas: Sequence[float],
    prompts: Sequence[Prompt],
    checker: Checker,
    settings: ProbeSettings,
    say: Console,
) -> list[Choice]:
    """The answers of plain SFT, of each alpha without a reference, then of each reference with each alpha.

    A seed gives a prompt the same noise in all of them.
    """
    seeds = range(settings.seeds)
    rounds = (1 + len(seeds)) * (1 + len(references) * len(alphas)) + len(seeds) * len(alphas)
    with progress_bar(say) as bar:
        tick = partial(bar.advance, bar.add_task("decoding", total=rounds * len(prompts)))

        def greedy(*weighted: WeightedModel) -> Answers:
            generate = generator(weighted, subject, settings.max_new_tokens)
            return answer(generate, prompts, None, checker, subject.tokenizer, tick)

        def sampled(*weighted: WeightedModel) -> list[Answers]:
            generate = generator(weighted, subject, settings.max_new_tokens)
            return [answer(generate, prompts, seed, checker, subject.tokenizer, tick) for seed in seeds]

        sft = load_model(subject.directory)
        plain = greedy((1.0, sft))
        choices = [Choice(None, 0.0, plain, sampled((1.0, sft)))]
        # Without a reference the most likely token stays the same, and so do greedy answers.
        choices += [Choice(None, alpha, plain, sampled((1.0 + alpha, sft))) for alpha in alphas]
        for name, directory in references.items():
            reference = load_model(directory)
            for alpha in alphas:
                weighted = (1.0 + alpha, sft), (-alpha, reference)
                choices.append(Choice(name, alpha, greedy(*weighted), sampled(*weighted)))
            del reference, weighted  # before the next one is loaded
    return choices


def generator(weighted_models: Sequence[WeightedModel], subject: Subject, max_new_tokens: int) -> Generate:
    """Responses from the weighted product of models, batch by batch."""

    def generate(prompt_ids_N: Sequence[Sequence[int]], seeds_N: Sequence[int] | None) -> Iterator[Rollout]:
        for start in range(0, len(prompt_ids_N), BATCH):
            batch = slice(start, start + BATCH)
            for one in decode(
                weighted_models,
                prompt_ids_N[batch],
                None if seeds_N is None else seeds_N[batch],
                max_new_tokens=max_new_tokens,
                eos_ids=subject.eos_ids,
                vocab_size=subject.vocab_size,
            ):
                yield replace(one, index=start + one.index)

    return generate


def load_model(directory: Path) -> Any:
    """A checkpoint in transformers, fp32, on the GPU if there is one."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
