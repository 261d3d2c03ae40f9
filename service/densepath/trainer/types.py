"""What passes between the parts of the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, and what belongs to it: a checker compares a response with `answer`."""

    text: str
    token_ids: tuple[int, ...]
    answer: str | None = None
    id: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    where: str = "a prompt"  # the file and the line that it is from


@dataclass(frozen=True)
class Rollout:
    """One sampled response: its place among those asked for, its ids exactly as sampled, EOS included."""

    index: int
    response_ids: tuple[int, ...]
    ended: bool  # its last token is an EOS token; False: it was cut at the limit
    logp_T: tuple[float, ...] | None = None  # the sampler's own log-probabilities, nats


class RolloutGenerator(Protocol):
    """Samples from a policy at temperature 1, nothing cut from the distribution: on-policy means that."""

    def generate(
        self, prompt_ids_N: Sequence[Sequence[int]], seeds_N: Sequence[int] | None
    ) -> Iterator[Rollout]:
        """One response for each of `prompt_ids_N`, as they finish.

        `seeds_N` has a seed for each; None decodes greedily. The same weights, prompts and seeds give the
        same ids. Repeat a prompt in the list for several rollouts of it.
        """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Go on with these weights, in place; names and shapes are those of the checkpoint."""

    def close(self) -> None:
        """Free the model."""
