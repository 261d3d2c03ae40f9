"""Results: one `Score` per item, in the order of the items, and the version of the pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.errors import DensepathError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Score:
    """The rewards of one item, or the reason why it has none.

    A failed score is never a number: where `error` is set, every array, `sum` and `ended` are None.
    T is the number of scored tokens; log-probabilities are natural logarithms at temperature 1.
    """

    index: int
    """The item's place in the list that was sent."""
    id: str | None = None
    reward_T: Float32 | None = None
    """`log p_sft - log p_reference` of each scored token, in nats."""
    logp_sft_T: Float32 | None = None
    """With include "logprobs"; the same holds for `logp_reference_T`."""
    logp_reference_T: Float32 | None = None
    return_T: Float32 | None = None
    """With include "returns": `G_t = r_t + gamma * G_{t+1}`."""
    response_token_ids: Int64 | None = None
    """`[T]`: always for text and chat items, and for other items with include "tokens"."""
    positions: Int64 | None = None
    """`[T]`, for the spans form: the index in `token_ids` of each reward."""
    tokens: tuple[str, ...] | None = None
    """T strings, with include "tokens"."""
    offsets: Int64 | None = None
    """`[T, 2]`, for text and chat items with include "tokens": start and end of each token in the response
    string, in Unicode characters."""
    sum: float | None = None
    ended: bool | None = None
    """Whether the last scored token is an end-of-sequence token."""
    error: DensepathError | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one call. All come from one version of the pair."""

    items: tuple[Score, ...]
    model_version: str
    usage: dict[str, int]
    """`prompt_tokens`, `response_tokens` and `cached_tokens`, summed over the requests of the call."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.items)

    def __getitem__(self, index: int) -> Score:
        return self.items[index]

    def padded(self) -> tuple[Float32, npt.NDArray[np.bool_]]:
        """`(reward_N_T, mask_N_T)`: float32 and bool. T is the length of the longest item.

        The mask is True where there is a reward. After an item's end, the reward is 0. The whole row of a
        failed item is NaN with mask False: a sum that forgets the mask becomes NaN, and does not count the
        failure as a reward of 0.
        """
        longest = max((len(item.reward_T) for item in self.items if item.reward_T is not None), default=0)
        reward_N_T = np.zeros((len(self.items), longest), np.float32)
        mask_N_T = np.zeros((len(self.items), longest), np.bool_)
        for n, item in enumerate(self.items):
            if item.reward_T is None:
                reward_N_T[n] = np.nan
            else:
                reward_N_T[n, : len(item.reward_T)] = item.reward_T
                mask_N_T[n, : len(item.reward_T)] = True
        return reward_N_T, mask_N_T

    def padded_torch(self, device: Any = "cpu") -> tuple[Any, Any]:
        """`padded` as torch tensors on a device: float32 and bool. torch must be installed."""
        torch = import_module("torch")  # by name, because the client does not depend on torch
        reward_N_T, mask_N_T = self.padded()
        return torch.from_numpy(reward_N_T).to(device), torch.from_numpy(mask_N_T).to(device)
