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
    """Weights of the log-probabilities `sft * log p_sft + reference * log p_reference` over the vocabulary,
    and how many of the most likely tokens to return at each scored token. One model alone is (1, 0) or (0,
    1).
    """

    sft: float
    reference: float
    top: int = 0


@dataclass(frozen=True, slots=True)
class Ranked:
    """Ranks of the scored tokens in the whole vocabulary, under the weights of a `View`."""

    logp_T: NDArray[np.float32]  # of the scored token
    rank_T: NDArray[np.int64]  # how many tokens are at least as likely, itself included: 1 is the most likely
    top_ids_T_K: NDArray[np.int64]  # the most likely first
    top_logp_T_K: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scored:
    """Both models' log-probabilities of the scored tokens: float32 [T] each, natural logarithm.

    They may hold NaN or infinity if a model is broken; `rewards.rewards` refuses such values.
    """

    logp_sft_T: NDArray[np.float32]
    logp_reference_T: NDArray[np.float32]
    cached_tokens: int
    ranked: Ranked | None = None  # set if a view was requested


class Scorer(Protocol):
    """Scores sequences with one pair. Many calls of `score` may run at the same time."""

    context_length: int  # tokens
    dtype: str  # torch's name of the dtype in which the SFT is computed
    reference_dtype: str  # the same for the reference

    @property
    def steps(self) -> int:
        """Grows with every forward pass that the engine has finished. In an engine that hangs it stays."""

    async def start(self) -> None:
        """Load the pair. After this, sequences can be scored."""

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        """Score one sequence by teacher forcing at temperature 1, and rank its tokens if a view is given.

        A cold call reads nothing from the prefix cache, so every row is computed again.

        Cancelling the call cancels its work in the engine. Raises EngineUnavailableError if the engine has
        died.
        """

    def alive(self) -> bool:
        """Whether the engine can still answer."""

    async def died(self) -> None:
        """Wait until a started engine has died, and then return."""

    async def close(self) -> None:
        """Free the models and end the engine's processes, also where the engine hangs or is still starting.

        Calls of `score` that wait raise EngineUnavailableError at once.
        """


def engine_lost() -> EngineUnavailableError:
    """The error of a call whose engine has died or was ended."""
    return EngineUnavailableError("the engine has died, or hung and was ended", retry_after=30)
