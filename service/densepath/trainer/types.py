"""The types that the parts of the trainer exchange."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, with the `answer` that a checker compares a response with."""

    text: str
    token_ids: tuple[int, ...]
    answer: str | None = None
    id: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    where: str = "a prompt"  # the file and the line that it is from


@dataclass(frozen=True)
class Rollout:
    """One sampled response: its index among the requested ones, and its ids exactly as sampled, with EOS."""

    index: int
    response_ids: tuple[int, ...]
    ended: bool  # whether its last token is an EOS token; if not, it was cut at the limit
    logp_T: tuple[float, ...] | None = None  # the sampler's own log-probabilities, nats


class RolloutGenerator(Protocol):
    """Samples on-policy: from the policy's whole distribution, at temperature 1."""

    def generate(
        self, prompt_ids_N: Sequence[Sequence[int]], seeds_N: Sequence[int] | None
    ) -> Iterator[Rollout]:
        """Yield one response for each of `prompt_ids_N`, in the order in which they finish.

        `seeds_N` has one seed per prompt; None means greedy decoding. The same weights, prompts and seeds
        give the same ids. Repeat a prompt in the list for several rollouts of it.
        """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights in place. Names and shapes are those of the checkpoint."""

    def close(self) -> None:
        """Free the model."""
