"""A made-up run directory of `densepath train`: written by the trainer's own code, figures from a formula."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from densepath.api.schemas import PairAnswer, PairLimits, PairSources, VerifiedAnswer
from densepath.trainer.reinforce import step_row
from densepath.trainer.reinforce.batch import Response
from densepath.trainer.reinforce.journal import Journal
from densepath.trainer.reinforce.learner import StepFigures
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.run_files import MANIFEST, PHASES, Row
from densepath.trainer.types import Prompt
from densepath.verification.verdict import not_verified

SETTINGS = TrainSettings(
    sft=Path("run/final"),
    prompts=Path("prompts.jsonl"),
    run=Path("run/dpr"),
    api_key="s3cret",
    learning_rate=1e-4,
    held_out=Path("held_out.jsonl"),
)
PAIR = PairAnswer(
    model="default",
    version="0123456789abcdef",
    sources=PairSources(sft="final", reference="base"),
    dtype="float32",
    reference_dtype="float32",
    verified=VerifiedAnswer.model_validate(asdict(not_verified("--verify off"))),
    vocab_size=43,
    context_length=64,
    tokenizer_fingerprint="tokens",
    chat_template_fingerprint=None,
    eos_token_ids=[1],
    limits=PairLimits(max_items=64, max_body_bytes=1 << 20, max_queued_tokens=4096),
).model_dump(mode="json")
PROMPTS = [Prompt(f"reverse: planet {n}", (2, 3)) for n in range(SETTINGS.prompts_per_step)]
TOKENS = ("<eos>", " \n", *"abcdefghijklmnopqrstuvwxyz")
SECONDS = dict(zip(PHASES, (0.9, 0.12, 0.45, 0.05, 0.3), strict=True))


class Spelling:
    """The names of token ids; `first`, where it is given, of a response's first token."""

    def __init__(self, first: str | None) -> None:
        self._first = first

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        names = [TOKENS[index] for index in ids]
        return [self._first, *names[1:]] if self._first is not None else names


def make_responses(step: int) -> list[Response]:
    """A step's responses; of those that are learned, longer ones have larger sums."""
    chance = np.random.default_rng(step)
    reward, kl = 2 * (1 - np.exp(-step / 15)) + 0.1 * chance.normal(), 0.02 * step
    made = []
    for n, prompt in enumerate(PROMPTS):
        length, ended = 4 + n % 7, n % 13 != 12
        logp_T = (-0.9 * np.exp(-step / 60) * chance.exponential(size=length)).astype(np.float32)
        reward_T = (reward / 7 + 0.3 * chance.normal(size=length)).astype(np.float32)
        learned = ended and n != 40  # that one has an id outside the vocabulary
        made.append(
            Response(
                prompt=n,
                prompt_ids=prompt.token_ids,
                response_ids=(*map(int, chance.integers(2, 28, length - 2)), 1, 0 if ended else 2),
                ended=ended,
                logp_T=logp_T,
                reward_T=reward_T if learned else None,
                logp_sft_T=(logp_T - kl / 7).astype(np.float32) if learned else None,
            )
        )
    return made


def make_row(step: int, *, held_out: bool = True) -> Row:
    """The line of `metrics.jsonl` for a step."""
    responses, chance = make_responses(step), np.random.default_rng((step, 0))
    figures = StepFigures(-0.1, 1 + 0.2 * chance.random(), [one.logp_T + 1e-6 for one in responses])
    row = step_row.make_row(step, responses, [figures], SETTINGS)
    seconds = {phase: value * (1 + 0.1 * chance.random()) for phase, value in SECONDS.items()}
    if held_out and (step == 1 or step % SETTINGS.check_every == 0):
        row["held_out"] = {"greedy": 0.55 + step / 400}
    else:
        del seconds["held_out"]
    return row | {"seconds": {**seconds, "total": sum(seconds.values()) + 0.02}}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(
    directory: Path,
    *,
    steps: int = 40,
    held_out: bool = True,
    samples: int = step_row.SAMPLES_PER_STEP,
    token: str | None = None,
    **manifest: Any,
) -> Path:
    """A run of `steps` steps; with 0 `samples` it kept none. `manifest` changes what manifest.json says.

    `token` is the text of each sample's first token.
    """
    journal = Journal(directory, SETTINGS.deciding(), PAIR)
    for step in range(1, steps + 1):
        rows = step_row.make_samples(step, make_responses(step), PROMPTS, Spelling(token))
        journal.add(make_row(step, held_out=held_out), rows[:samples])
    journal.stop(steps, f"all {steps} steps are done")
    described = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    (directory / MANIFEST).write_text(json.dumps(described | manifest), encoding="utf-8")
    return directory
