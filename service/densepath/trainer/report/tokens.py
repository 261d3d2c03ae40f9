"""The tokens of a sample, each on the colour of its reward: blue if the SFT model finds it more likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from densepath.show import FULL_AT
from densepath.trainer.report.measures import spread
from densepath.trainer.report.run import Sample

SAMPLES_A_STEP = 6
MOST_TOKENS = 400
MOST_PROMPT_CHARACTERS = 1000
#: From this share of the full colour on, text gets the other colour, so that the contrast stays above 4.5, in
#: light and dark.
STRONG_FROM = {"positive": 0.87, "negative": 0.83}


@dataclass(frozen=True)
class Token:
    """A token as the page shows it: `hue` at `share` of its full colour."""

    text: str
    reward: float
    hue: str
    share: float

    @property
    def strong(self) -> bool:
        """Whether text on it needs the other colour."""
        return self.share >= STRONG_FROM[self.hue]


@dataclass(frozen=True)
class ShownSample:
    """A sample. A long prompt is cut at its start, and long responses are cut at their end."""

    prompt: str
    tokens: tuple[Token, ...]
    left_out: int
    length: int
    sum: float
    ended: bool


@dataclass(frozen=True)
class ShownStep:
    """Samples of one step: the first ones in the file, without selection."""

    step: int
    samples: tuple[ShownSample, ...]
    kept: int


def colour_token(text: str, reward: float) -> Token:
    """The colour grows with the size of the reward up to FULL_AT nats, as in `densepath score --show`."""
    share = min(abs(reward) / FULL_AT, 1.0) if np.isfinite(reward) else 0.0
    return Token(_visible(text), reward, "positive" if reward > 0 else "negative", round(share, 3))


def choose_samples(samples: Sequence[Sample]) -> tuple[ShownStep, ...]:
    """Samples of the first step that has some, of one in the middle, and of the last."""
    steps = sorted({sample.step for sample in samples})
    chosen = [steps[index] for index in spread(len(steps), 3)] if steps else []
    return tuple(_show_step([sample for sample in samples if sample.step == step]) for step in chosen)


def legend() -> tuple[Token, ...]:
    """The scale: rewards from −FULL_AT to FULL_AT."""
    return tuple(
        colour_token(f"{reward:+.1f}", reward) for reward in np.linspace(-FULL_AT, FULL_AT, 9).tolist()
    )


def _show_step(samples: Sequence[Sample]) -> ShownStep:
    shown = tuple(_show(sample) for sample in samples[:SAMPLES_A_STEP])
    return ShownStep(samples[0].step, shown, len(samples))


def _show(sample: Sample) -> ShownSample:
    prompt = sample.prompt
    if len(prompt) > MOST_PROMPT_CHARACTERS:
        prompt = "[…] " + prompt[-MOST_PROMPT_CHARACTERS:]
    pairs = list(zip(sample.tokens, sample.reward_T.tolist(), strict=True))[:MOST_TOKENS]
    tokens = tuple(colour_token(text, reward) for text, reward in pairs)
    length = len(sample.tokens)
    return ShownSample(prompt, tokens, length - len(tokens), length, sample.sum, sample.ended)


def _visible(text: str) -> str:
    """Show line ends and tabs as signs, so that a token of white space is visible."""
    return text.replace("\n", "⏎").replace("\t", "⇥") or "∅"
