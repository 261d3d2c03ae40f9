"""`densepath eval`: how accurate checkpoints are on held-out prompts, and whether they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import densepath
from densepath.errors import InvalidRequestError
from densepath.file_errors import require_directory
from densepath.pair.adapters import whole_checkpoint
from densepath.trainer.checking import Checker
from densepath.trainer.evaluate.harness import require_harness, run_harness
from densepath.trainer.evaluate.judges import write_answers
from densepath.trainer.evaluate.responses import (
    Answers,
    Subject,
    answer,
    mean_score,
    name_directories,
    open_subject,
    require_room,
    summary,
)
from densepath.trainer.evaluate.settings import EvalSettings
from densepath.trainer.evaluate.statistics import estimate_difference
from densepath.trainer.evaluate.tables import (
    GREEDY,
    SAMPLED,
    eval_table,
    progress_bar,
    require_place,
    write_json,
)
from densepath.trainer.prompts import read_prompts
from densepath.trainer.rollouts.engines import build_generator
from densepath.trainer.types import Prompt, RolloutGenerator

#: Builds the generator of a subject, for at most this many tokens of a prompt and its response.
Build = Callable[[Subject, int], RolloutGenerator]


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint's answers to the prompts, which its own tokenizer has tokenised."""

    subject: Subject
    prompts: Sequence[Prompt]
    greedy: Answers
    sampled: Sequence[Answers]  # one per seed

    def rounds(self) -> Mapping[str, Sequence[Answers]]:
        """The answers by how they were decoded."""
        return {GREEDY: [self.greedy], SAMPLED: self.sampled}


def run_evaluation(settings: EvalSettings, say: Console, show: Console) -> None:
    """Run `densepath eval`: progress goes to `say`, results go to `show` and to the output files."""
    if settings.held_out is None and settings.lm_eval is None:
        raise InvalidRequestError("give --held-out FILE, --lm-eval TASKS, or both")
    require_place(settings.output)
    if settings.answers is not None:
        require_directory(settings.answers)
    if settings.lm_eval is not None:
        require_harness()
    names = name_directories(settings.checkpoints)
    merging = partial(say.print, markup=False, soft_wrap=True)
    directories = [whole_checkpoint(checkpoint, None, merging) for checkpoint in settings.checkpoints]
    if settings.held_out is not None:
        subjects = [open_subject(path, name) for path, name in zip(directories, names, strict=True)]
        _on_held_out(subjects, settings.held_out, settings, say, show)
    if settings.lm_eval is not None:
        for directory in directories:
            run_harness(directory, settings.lm_eval, settings.lm_eval_args, say)


def _on_held_out(
    subjects: Sequence[Subject], held_out: Path, settings: EvalSettings, say: Console, show: Console
) -> None:
    evaluated = evaluate(subjects, held_out, settings, builder(settings), say)
    report = eval_report(evaluated, settings)
    show.print(eval_table(report))
    if settings.output is not None:
        write_json(settings.output, report)
    if settings.answers is not None:
        for one in evaluated:
            write_answers(settings.answers, one.subject.name, one.prompts, one.greedy.text_N)


def builder(settings: EvalSettings) -> Build:
    """Builds generators with the chosen engine. vLLM runs each checkpoint in its own dtype."""

    def build(subject: Subject, tokens: int) -> RolloutGenerator:
        return build_generator(
            settings.engine,
            subject.directory,
            max_new_tokens=settings.max_new_tokens,
            eos_ids=subject.eos_ids,
            max_model_len=tokens,
            dtype=subject.dtype,
            gpu_memory_utilization=settings.gpu_memory_utilization,
        )

    return build


def evaluate(
    subjects: Sequence[Subject], held_out: Path, settings: EvalSettings, build: Build, say: Console
) -> list[Evaluated]:
    """Each subject's answers to the same prompts, under the same seeds.

    All checks are made before anything is generated.
    """
    checker = Checker(settings.checker)
    prompts = [read_prompts(held_out, subject.tokenizer) for subject in subjects]
    checker.require_answers(prompts[0])
    tokens = [
        require_room(of_subject, subject, settings.max_new_tokens)
        for of_subject, subject in zip(prompts, subjects, strict=True)
    ]
    evaluated = []
    with progress_bar(say) as bar:
        for subject, of_subject, room in zip(subjects, prompts, tokens, strict=True):
            task = bar.add_task(subject.name, total=len(of_subject) * (1 + settings.seeds))
            tick = partial(bar.advance, task)
            with closing(build(subject, room)) as generator:
                greedy, *sampled = [
                    answer(generator.generate, of_subject, seed, checker, subject.tokenizer, tick)
                    for seed in (None, *range(settings.seeds))
                ]
            evaluated.append(Evaluated(subject, of_subject, greedy, sampled))
    return evaluated


def eval_report(evaluated: Sequence[Evaluated], settings: EvalSettings) -> dict[str, Any]:
    """All results as JSON values: accuracies, differences from the first checkpoint, every response."""
    first = evaluated[0].rounds()
    checkpoints = []
    for one in evaluated:
        found: dict[str, Any] = {"name": one.subject.name, "path": str(one.subject.directory)}
        for how, answers in one.rounds().items():
            found[how] = summary(answers)
            if one is not evaluated[0]:
                difference = estimate_difference(mean_score(answers), mean_score(first[how]))
                found[how]["minus_first"] = asdict(difference)
        found["responses"] = [_responses(one, n) for n in range(len(one.prompts))]
        checkpoints.append(found)
    return {
        "kind": "eval",
        "densepath": densepath.__version__,
        "settings": asdict(settings),
        "prompts": len(evaluated[0].prompts),
        "intervals": "95 %, bootstrap over prompts, differences paired by prompt, samples averaged first",
        "checkpoints": checkpoints,
    }


def _responses(one: Evaluated, n: int) -> dict[str, Any]:
    rounds = {how: [_response(answers, n) for answers in of_how] for how, of_how in one.rounds().items()}
    return {"id": one.prompts[n].id, GREEDY: rounds[GREEDY][0], SAMPLED: rounds[SAMPLED]}


def _response(answers: Answers, n: int) -> dict[str, Any]:
    return {
        "response": answers.text_N[n],
        "score": float(answers.score_N[n]),
        "tokens": int(answers.length_N[n]),
        "ended": bool(answers.ended_N[n]),
    }
