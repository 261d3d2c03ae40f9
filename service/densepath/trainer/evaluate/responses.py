"""The responses of a checkpoint to held-out prompts, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densepath.errors import InvalidRequestError
from densepath.pair.checkpoint import require_checkpoint
from densepath.pair.pair import stored_dtype
from densepath.sequences import Tokenizer
from densepath.trainer.checking import Checker, response_text
from densepath.trainer.evaluate.statistics import Floats, estimate_mean
from densepath.trainer.prompts import rollout_seeds
from densepath.trainer.types import Prompt, Rollout

#: As `RolloutGenerator.generate`.
Generate = Callable[[Sequence[Sequence[int]], Sequence[int] | None], Iterable[Rollout]]


@dataclass(frozen=True)
class Subject:
    """A checkpoint to evaluate: what is needed to generate from it and to decode its responses."""

    name: str
    directory: Path
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    vocab_size: int  # ids that the tokenizer has: the largest + 1
    context_length: int  # tokens
    dtype: str  # the dtype of most of its weights


@dataclass(frozen=True)
class Answers:
    """One response to each of N prompts.

    `score_N` float64 is 0 (wrong) to 1 (right), `length_N` int64 counts tokens with EOS, `ended_N` bool is
    False if a response was cut at the limit.
    """

    text_N: tuple[str, ...]
    score_N: Floats
    length_N: NDArray[np.int64]
    ended_N: NDArray[np.bool_]


def open_subject(directory: Path, name: str) -> Subject:
    """The checkpoint of a model directory. Raises InvalidRequestError with all problems."""
    found = require_checkpoint(directory)
    return Subject(
        name=name,
        directory=directory,
        tokenizer=Tokenizer(found.tokenizer.loaded),
        eos_ids=found.config.eos_token_ids | found.tokenizer.eos_token_ids,
        vocab_size=found.tokenizer.vocab_size,
        context_length=found.config.context_length,
        dtype=stored_dtype(found.weights),
    )


def name_directories(directories: Sequence[Path]) -> list[str]:
    """The shortest distinct ends of the paths. Raises InvalidRequestError if two are equal."""
    parts = [directory.resolve().parts for directory in directories]
    if len(set(parts)) < len(parts):
        raise InvalidRequestError("a directory is given twice: give each directory once")
    names: list[str] = []
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def require_room(prompts: Sequence[Prompt], subject: Subject, max_new_tokens: int) -> int:
    """The largest number of tokens of a prompt and its response together.

    Raises InvalidRequestError if that is over the context length.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts)
    if longest + max_new_tokens > subject.context_length:
        raise InvalidRequestError(
            f"the longest prompt has {longest} tokens, which with --max-new-tokens {max_new_tokens} is more "
            f"than the {subject.context_length} tokens of {subject.name}'s context: lower --max-new-tokens, "
            "or leave that prompt out"
        )
    return longest + max_new_tokens


def answer(
    generate: Generate,
    prompts: Sequence[Prompt],
    seed: int | None,
    checker: Checker,
    tokenizer: Tokenizer,
    tick: Callable[[], object],
) -> Answers:
    """One response to each prompt, greedy without a seed. `tick` is called once per response.

    A seed gives each prompt its own noise, which does not depend on the model. So the responses of two models
    to one prompt under one seed are a pair.
    """
    seeds_N = None if seed is None else rollout_seeds(seed, 0, len(prompts))
    rollout_of: dict[int, Rollout] = {}
    for rollout in generate([prompt.token_ids for prompt in prompts], seeds_N):
        rollout_of[rollout.index] = rollout
        tick()
    rollouts = [rollout_of[n] for n in range(len(prompts))]
    scores = [checker.score(p, r, tokenizer) for p, r in zip(prompts, rollouts, strict=True)]
    return Answers(
        text_N=tuple(response_text(rollout, tokenizer) for rollout in rollouts),
        score_N=np.array(scores, dtype=np.float64),
        length_N=np.array([len(rollout.response_ids) for rollout in rollouts], dtype=np.int64),
        ended_N=np.array([rollout.ended for rollout in rollouts], dtype=np.bool_),
    )


def mean_score(answers: Sequence[Answers]) -> Floats:
    """Each prompt's score, averaged over several responses to it: float64 [N]."""
    score_N: Floats = np.mean([one.score_N for one in answers], axis=0)
    return score_N


def summary(answers: Sequence[Answers]) -> dict[str, Any]:
    """The results of several rounds of responses to the same prompts, as JSON values."""
    accuracy = estimate_mean(mean_score(answers))
    return {
        "accuracy": accuracy.value,
        "interval": accuracy.interval,
        "mean_tokens": float(np.mean([one.length_N for one in answers])),
        "responses": sum(len(one.text_N) for one in answers),
        "truncated": sum(int((~one.ended_N).sum()) for one in answers),
    }
