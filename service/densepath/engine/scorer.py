"""The interface between the service and an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from densepath.sequences import Sequence


@dataclass(frozen=True, slots=True)
class Scored:
    """Both models' log-probabilities of the scored tokens: float32 [T] each, natural logarithm.

    They may hold NaN or infinity when a model is broken: `rewards.rewards` refuses those.
    """

    logp_sft_T: NDArray[np.float32]
    logp_reference_T: NDArray[np.float32]
    cached_tokens: int


class Scorer(Protocol):
    """Scores sequences under one pair. `score` may be awaited many times at once."""

    context_length: int

    async def start(self) -> None:
        """Load the pair. Scoring is possible from then on."""

    async def score(self, sequence: Sequence) -> Scored:
        """Score one sequence by teacher forcing at temperature 1.

        Cancelling the call cancels its work in the engine. Raises EngineUnavailableError when the engine
        is gone.
        """

    def alive(self) -> bool:
        """Whether the engine can still answer."""

    async def close(self) -> None:
        """Free the models and end the engine's processes."""
