"""What the files of a run keep of each step: its figures, and some of its scored responses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from densepath.trainer.reinforce.batch import Response
from densepath.trainer.reinforce.learner import StepFigures
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.run_files import Phase, Row
from densepath.trainer.types import Prompt

#: Scored responses that are kept per step, for people to look at.
SAMPLES_PER_STEP = 16


class Spelling(Protocol):
    """The part of a tokenizer that is needed to show a response."""

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token by itself."""


class Clock:
    """Measures the seconds of each phase of a step, from its creation on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time spent inside the block."""
        start = time.perf_counter()
        yield
        self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """The seconds by phase, and in total."""
        return {**self._phases, "total": time.perf_counter() - self._start}


def make_row(
    step: int, responses_N: Sequence[Response], figures: Sequence[StepFigures], settings: TrainSettings
) -> Row:
    """The figures of one step from all processes' responses and each process's `figures`.

    Reward and KL are sums over the tokens of a response, in nats, averaged over the learned responses. The
    entropy is the mean of -log pi over the sampled tokens, which is an unbiased estimate.
    """
    learned = [one for one in responses_N if one.learned]
    reward_N = np.array([_sum(one.reward_T) for one in learned])
    kl_N = np.array([_sum(one.logp_T) - _sum(one.logp_sft_T) for one in learned])
    length_N = np.array([len(one.response_ids) for one in responses_N])
    logp = np.concatenate([one.logp_T for one in responses_N])
    updated = np.concatenate([logp_T for each in figures for logp_T in each.logp_N_T])
    return {
        "step": step,
        "reward": float(reward_N.mean()),
        "reward_token": float(reward_N.sum() / sum(len(one.response_ids) for one in learned)),
        "kl": float(kl_N.mean()),
        "objective": float(reward_N.mean() - settings.kl * kl_N.mean()),
        "length": float(length_N.mean()),
        "truncated": sum(not one.ended for one in responses_N),
        "out_of_vocabulary": sum(one.ended and not one.learned for one in responses_N),
        "responses": len(responses_N),
        "entropy": float(-logp.mean()),
        "grad_norm": figures[0].grad_norm,
        "loss": figures[0].loss,
        "lr": settings.learning_rate,
        "logp_gap": float(np.abs(updated - logp).max()),
    }


def make_samples(
    step: int, responses_N: Sequence[Response], prompts: Sequence[Prompt], tokenizer: Spelling
) -> list[Row]:
    """Lines of samples.jsonl: the first learned responses of a step, with their rewards in nats."""
    return [
        {
            "step": step,
            "prompt": prompts[one.prompt].text,
            "tokens": tokenizer.token_strings(one.response_ids),
            "rewards": [round(float(reward), 5) for reward in np.asarray(one.reward_T)],
            "sum": _sum(one.reward_T),
            "ended": one.ended,
        }
        for one in [one for one in responses_N if one.learned][:SAMPLES_PER_STEP]
    ]


def _sum(array_T: Any) -> float:
    return float(np.sum(array_T, dtype=np.float64))
