"""The interface between the service and an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from densepath.errors import EngineUnavailableError
from densepath.sequences import Sequence


@dataclass(frozen=True, slots=True)
class View:
    """Log-probabilities over the vocabulary, `sft * log p_sft + reference * log p_reference`, and how many
    of the most likely tokens to name at each scored one. One model alone is (1, 0) or (0, 1).
    """

    sft: float
    reference: float
    top: int = 0


@dataclass(frozen=True, slots=True)
class Ranked:
    """The scored tokens among their whole vocabulary, as a `View` sees them."""

    logp_T: NDArray[np.float32]  # of the scored token
    rank_T: NDArray[np.int64]  # how many tokens are as likely or likelier, itself counted: 1 is the likeliest
    top_ids_T_K: NDArray[np.int64]  # the likeliest first
    top_logp_T_K: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scored:
    """Both models' log-probabilities of the scored tokens: float32 [T] each, natural logarithm.

    They may hold NaN or infinity when a model is broken: `rewards.rewards` refuses those.
    """

    logp_sft_T: NDArray[np.float32]
    logp_reference_T: NDArray[np.float32]
    cached_tokens: int
    ranked: Ranked | None = None  # where a view was asked for


class Scorer(Protocol):
    """Scores sequences under one pair. `score` may be awaited many times at once."""

    context_length: int  # tokens
    dtype: str  # that the models are computed in, by torch's name

    async def start(self) -> None:
        """Load the pair. Scoring is possible from then on."""

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        """Score one sequence by teacher forcing at temperature 1, and rank its tokens where a view is given.

        A cold call takes nothing from the prefix cache: every row is computed anew.

        Cancelling the call cancels its work in the engine. Raises EngineUnavailableError when the engine
        is gone.
        """

    def alive(self) -> bool:
        """Whether the engine can still answer."""

    async def died(self) -> None:
        """Return when a started engine is gone; never before."""

    async def close(self) -> None:
        """Free the models and end the engine's processes."""


def engine_died() -> EngineUnavailableError:
    """The one error of an engine that is gone."""
    return EngineUnavailableError(
        "the engine has died, and this service ends: its log has the reason", retry_after=30
    )
