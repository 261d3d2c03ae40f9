"""Runs the trainer: checks the settings, opens what a run needs, shows progress, and saves its state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densepath.errors import InvalidRequestError
from densepath.files import reserved_directory
from densepath.integrations.alignment import AlignmentError, check_policy
from densepath.pair.adapters import whole_checkpoint
from densepath.pair.checkpoint import require_checkpoint
from densepath.rewards.kl import LEAST_KL_COEFFICIENT
from densepath.sequences import Tokenizer
from densepath.trainer.checking import Checker
from densepath.trainer.prompts import read_prompts
from densepath.trainer.reinforce.checkpoints import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_model,
)
from densepath.trainer.reinforce.dense_path import DensePath
from densepath.trainer.reinforce.journal import Journal
from densepath.trainer.reinforce.learner import Learner
from densepath.trainer.reinforce.metrics import Sinks, open_sinks
from densepath.trainer.reinforce.reward_calls import RewardCalls
from densepath.trainer.reinforce.sampling import Sampler
from densepath.trainer.reinforce.settings import Precision, TrainSettings
from densepath.trainer.reinforce.step_row import make_samples
from densepath.trainer.reinforce.workers import Workers
from densepath.trainer.rollouts.engines import build_generator
from densepath.trainer.run_files import CHECKPOINTS, FINAL, Row
from densepath.trainer.types import Prompt


def train(settings: TrainSettings, say: Console) -> str:
    """Start or resume a run of Dense-Path REINFORCE. Returns why it ended.

    Raises DensepathError or TrainerError if it cannot continue. The same settings then resume from the
    last checkpoint.
    """
    with ExitStack() as stack:
        workers = stack.enter_context(Workers())
        say = say if workers.first else Console(quiet=True)
        if workers.first:
            stack.enter_context(reserved_directory(settings.run))
        _check(settings, workers, say)
        merging = partial(say.print, markup=False, soft_wrap=True)
        settings = replace(settings, sft=whole_checkpoint(settings.sft, None, merging))
        sinks = stack.enter_context(
            open_sinks(settings.trackers(), settings.metrics_port, settings.run)
            if workers.first
            else Sinks([])
        )
        bar = stack.enter_context(_Bar(settings, say))

        def on_wait(words: str | None) -> None:
            bar.waits(words)
            sinks.waiting(words is not None)

        rewards = stack.enter_context(
            RewardCalls(
                settings.url, api_key=settings.api_key, wait_seconds=settings.wait_seconds, on_wait=on_wait
            )
        )
        sampler = stack.enter_context(closing(_sampler(settings, workers, rewards)))
        learner = Learner(
            settings.sft,
            workers,
            learning_rate=settings.learning_rate,
            clip_gradient=settings.clip_gradient,
            micro_batch=settings.micro_batch,
            bfloat16=settings.precision is Precision.BFLOAT16,
        )
        journal = Journal(settings.run, settings.deciding(), rewards.pair) if workers.first else None
        rows = _go_back(settings, workers, learner, journal, say)
        if rows:
            sampler.load_weights(learner.weights())
        run = DensePath(settings, workers, learner, sampler)
        bar.shows(rows)
        for row, responses in run.steps(rows):
            rows.append(row)
            bar.shows(rows)
            sinks.step(row)
            if journal:
                samples = make_samples(row["step"], responses, sampler.prompts, sampler.tokenizer)
                journal.add(row, samples)
            if row["step"] % settings.save_every == 0 or run.why_stop(rows):
                _save(settings, workers, learner, journal, row["step"])
        why = run.why_stop(rows) or ""
        save_model(settings.run / FINAL, settings.sft, learner.held_weights(), workers)
        if journal:
            journal.stop(len(rows), why)
        return why


def _check(settings: TrainSettings, workers: Workers, say: Console) -> None:
    """Check what can be checked before anything is loaded."""
    if settings.prompts_per_step % workers.count:
        raise InvalidRequestError(
            f"--prompts-per-step {settings.prompts_per_step} must be divisible by "
            f"the {workers.count} processes that train"
        )
    if settings.kl < LEAST_KL_COEFFICIENT:
        say.print(
            f"[yellow]warning[/yellow] --kl {settings.kl:g} is below {LEAST_KL_COEFFICIENT:g}: without a KL "
            "term the policy collapses while its reward rises"
        )


def _sampler(settings: TrainSettings, workers: Workers, rewards: RewardCalls) -> Sampler:
    pair = rewards.pair
    tokenizer = _tokenizer(settings.sft, pair)
    prompts = read_prompts(settings.prompts, tokenizer)
    held_out = read_prompts(settings.held_out, tokenizer) if settings.held_out else []
    checker = Checker(settings.checker)
    checker.require_answers(held_out)
    _require_room([*prompts, *held_out], settings.max_new_tokens, pair["context_length"])
    generator = build_generator(
        settings.rollout_engine,
        settings.sft,
        max_new_tokens=settings.max_new_tokens,
        eos_ids=frozenset(pair["eos_token_ids"]),
        max_model_len=pair["context_length"],
        dtype=settings.precision.value,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        processes=workers.count,
    )
    return Sampler(
        settings, workers, generator, rewards, prompts, held_out, checker, tokenizer, pair["vocab_size"]
    )


def _tokenizer(sft: Path, pair: dict[str, Any]) -> Tokenizer:
    """The policy's tokenizer. It must be the tokenizer of the pair, because the service scores its ids."""
    checkpoint = require_checkpoint(sft, "--sft")
    try:
        check_policy(sft, pair)
    except AlignmentError as error:
        raise InvalidRequestError(
            f"--sft does not fit the pair that the service serves: {error}; or serve this checkpoint's pair"
        ) from error
    return Tokenizer(checkpoint.tokenizer.loaded)


def _require_room(prompts: Sequence[Prompt], max_new_tokens: int, context_length: int) -> None:
    longest = max(len(prompt.token_ids) for prompt in prompts)
    if longest + max_new_tokens > context_length:
        raise InvalidRequestError(
            f"the longest prompt has {longest} tokens and --max-new-tokens is {max_new_tokens}: together "
            f"they must fit the context length of {context_length}"
        )


def _go_back(
    settings: TrainSettings, workers: Workers, learner: Learner, journal: Journal | None, say: Console
) -> list[Row]:
    """Load the newest checkpoint into the learner. Returns the rows up to it, in every process."""
    found = newest_checkpoint(settings.run / CHECKPOINTS, say.print) if journal else None
    step, directory = workers.gather(found)[0] or (0, None)
    if directory is not None:
        load_checkpoint(directory, learner.held_weights(), learner.held_moments(), workers)
        say.print(f"resuming after step {step}, from {directory}", soft_wrap=True)
    rows: list[Row] = workers.gather(journal.go_back(step) if journal else [])[0]
    return rows


def _save(
    settings: TrainSettings, workers: Workers, learner: Learner, journal: Journal | None, step: int
) -> None:
    if journal:
        journal.sync()
    save_checkpoint(
        settings.run / CHECKPOINTS,
        step,
        settings.sft,
        learner.held_weights(),
        learner.held_moments(),
        workers,
        keep=settings.keep,
    )


class _Bar:
    """The progress bar of a run: the steps, and the figures of the last one."""

    def __init__(self, settings: TrainSettings, say: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar, self._say = Progress(*columns, console=say), say
        self._task = self._bar.add_task("waiting for the service", total=settings.steps)

    def waits(self, words: str | None) -> None:
        """Print that the service does not answer, or with None, that it answers again."""
        self._say.print(words or "the service answers again", soft_wrap=True, markup=False)

    def shows(self, rows: Sequence[Row]) -> None:
        """Show the figures of the last row."""
        last = rows[-1] if rows else None
        words = "training"
        if last:
            words = f"reward {last['reward']:+.2f}  KL {last['kl']:.2f}  length {last['length']:.1f}"
        checks = [row["held_out"]["greedy"] for row in rows if row.get("held_out")]
        if checks:
            words += f"  held-out {checks[-1]:.1%}"
        self._bar.update(self._task, description=words, completed=len(rows))

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
