"""The responses of a step, and the arrays of those that are learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.rewards import shaping
from densepath.trainer.errors import TrainerError
from densepath.trainer.reinforce.settings import TrainSettings

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Response:
    """One sampled response. `reward_T` and `logp_sft_T` are None if it is not learned from."""

    prompt: int  # index in the prompts' file
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    ended: bool
    logp_T: Float32  # under the policy that sampled it, nats
    reward_T: Float32 | None = None  # r_t, nats, unshaped
    logp_sft_T: Float32 | None = None

    @property
    def learned(self) -> bool:
        """Whether the service scored it and the policy is updated from it (`can_be_learned`)."""
        return self.reward_T is not None


def can_be_learned(response_ids: Sequence[int], ended: bool, vocab_size: int) -> bool:
    """Whether the policy can learn from a response.

    If it was cut at the limit, a value in its sum stays uncancelled. An id from `vocab_size` on is a row of
    the embedding that only one model of the pair has, so it has no score.
    """
    return ended and max(response_ids) < vocab_size


@dataclass(frozen=True)
class Batch:
    """N learned responses, padded on the right to T tokens; float64, nats, 0 where there is no token."""

    mask_N_T: NDArray[np.bool_]  # True where there is a token
    reward_N_T: Float64  # r_t, with the chosen shaping
    logp_N_T: Float64  # under the policy that sampled them
    logp_sft_N_T: Float64
    prompt_N: NDArray[np.int64]  # the index of each response's prompt


def make_batch(responses_N: Sequence[Response], settings: TrainSettings) -> Batch:
    """The responses that are learned from, in their order.

    Raises TrainerError if there are none, because no update could be made.
    """
    learned = [response for response in responses_N if response.learned]
    if not learned:
        raise TrainerError(
            f"none of {len(responses_N)} responses ended within {settings.max_new_tokens} tokens, so there "
            "is nothing to learn from: raise --max-new-tokens, or check that the SFT model ends its responses"
        )
    length_N = np.array([len(response.response_ids) for response in learned])
    mask_N_T = np.arange(length_N.max()) < length_N[:, None]
    return Batch(
        mask_N_T=mask_N_T,
        reward_N_T=_pad(_shape(learned, settings), mask_N_T),
        logp_N_T=_pad([response.logp_T for response in learned], mask_N_T),
        logp_sft_N_T=_pad([_scored(response.logp_sft_T) for response in learned], mask_N_T),
        prompt_N=np.array([response.prompt for response in learned], dtype=np.int64),
    )


def _shape(responses_N: Sequence[Response], settings: TrainSettings) -> list[NDArray[np.floating]]:
    """The shaped rewards. The order of the shapings is that of rewards/shaping.py."""
    reward_N: list[NDArray[np.floating]] = [_scored(response.reward_T) for response in responses_N]
    if settings.reward_clip is not None:
        reward_N = [shaping.clip(reward_T, settings.reward_clip) for reward_T in reward_N]
    if settings.reward_scale != 1.0:
        reward_N = [shaping.scale(reward_T, settings.reward_scale) for reward_T in reward_N]
    if settings.reward_centre:
        reward_N = shaping.centre(reward_N)
    if settings.length_normalise:
        reward_N = [shaping.normalise_length(reward_T) for reward_T in reward_N]
    if settings.sft_potential is not None:
        reward_N = [
            shaping.add_potential(
                reward_T,
                shaping.likelihood_potential(_scored(response.logp_sft_T), settings.sft_potential),
                settings.gamma,
            )
            for reward_T, response in zip(reward_N, responses_N, strict=True)
        ]
    return reward_N


def _scored(array_T: Float32 | None) -> Float32:
    if array_T is None:
        raise TrainerError("a response without rewards is never learned")
    return array_T


def _pad(array_N: Sequence[NDArray[np.floating]], mask_N_T: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The arrays as one float64 [N, T], with 0 after the end of each."""
    padded_N_T = np.zeros(mask_N_T.shape)
    padded_N_T[mask_N_T] = np.concatenate(array_N)
    return padded_N_T
