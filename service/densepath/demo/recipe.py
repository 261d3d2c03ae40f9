"""What defines the demo pair: sizes, mixtures, rates and seeds. Two equal recipes build the same pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field

#: Increase this when a change of the code changes what a recipe builds, or what a manifest contains.
VERSION = 1

#: The folders of a demo's three checkpoints.
SFT, REFERENCE_HALF, REFERENCE_BASE = "sft", "reference-half", "reference-base"

#: Called with the stage's name, the number of steps done, and the number of all steps.
ProgressFn = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Mixture:
    """The share of each kind of answer. The shares sum to 1."""

    right: float
    other: float  # another operation's answer
    typo: float  # one letter replaced by another
    chatter: float  # the right answer, then words after it
    cut: float  # the right answer, ended too early

    def __post_init__(self) -> None:
        if abs(sum(astuple(self)) - 1) > 1e-9 or min(astuple(self)) < 0:
            raise ValueError("a mixture's shares must be >= 0 and sum to 1")


@dataclass(frozen=True)
class Recipe:
    """The demo's whole recipe. Steps are optimiser steps; rates are AdamW's."""

    hidden_size: int = 128
    intermediate_size: int = 320
    layers: int = 2
    heads: int = 4  # hidden_size / heads must be >= 32, the smallest size that the engine's kernels support
    context_length: int = 256
    rope_theta: float = 100.0  # small: a prompt has about 20 tokens, and the task depends on positions
    initializer_range: float = 0.05

    pretraining: Mixture = field(default_factory=lambda: Mixture(0.20, 0.60, 0.14, 0.04, 0.02))
    pretraining_steps: int = 2400
    pretraining_batch: int = 32
    pretraining_rate: float = 3e-3
    warmup_steps: int = 50

    demonstrations: Mixture = field(default_factory=lambda: Mixture(0.60, 0.30, 0.06, 0.02, 0.02))
    training_demonstrations: int = 2048
    validation_demonstrations: int = 256
    sft_batch: int = 64
    sft_rate: float = 1e-4
    sft_steps: int = 480  # at most
    validate_every: int = 8  # steps; even, so that half of the kept steps has a snapshot
    patience: int = 6  # validations without a new minimum before SFT stops

    held_out: int = 360  # examples
    seed: int = 0

    def __post_init__(self) -> None:
        if self.training_demonstrations % self.sft_batch:
            raise ValueError(
                "training_demonstrations must be a multiple of sft_batch: every step must have a full batch"
            )
        if self.validate_every % 2:
            raise ValueError("validate_every must be even: half of the kept steps needs a snapshot")

    @property
    def hash(self) -> str:
        """12 hex characters that name the recipe and the code's version of it."""
        canonical = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]
