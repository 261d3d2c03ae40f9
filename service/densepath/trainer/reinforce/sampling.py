"""The responses of a step: sampled from the policy, and scored while others are still being sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from densepath.client import Score
from densepath.sequences import Tokenizer
from densepath.trainer.checking import Checker
from densepath.trainer.prompts import rollout_seeds, step_indices
from densepath.trainer.reinforce.batch import Response, can_be_learned
from densepath.trainer.reinforce.reward_calls import RewardCalls
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.reinforce.step_row import Clock
from densepath.trainer.reinforce.workers import Workers
from densepath.trainer.types import Prompt, Rollout, RolloutGenerator

#: Responses per request: enough for a batch of the service, few enough to be sent early.
CALL_SIZE = 16


@dataclass(frozen=True)
class Sampler:
    """Samples and scores the responses of one process."""

    settings: TrainSettings
    workers: Workers
    generator: RolloutGenerator
    rewards: RewardCalls
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    checker: Checker
    tokenizer: Tokenizer
    vocab_size: int

    def sample(self, step: int, clock: Clock) -> list[Response]:
        """This process's share of the responses of a step. It depends only on the step."""
        settings = self.settings
        index_P = step_indices(len(self.prompts), settings.prompts_per_step, step, settings.seed)
        index_N = [index for index in index_P for _ in range(settings.rollouts)]
        seeds_N = rollout_seeds(settings.seed, step, len(index_N))
        index_N, seeds_N = list(self.workers.share(index_N)), list(self.workers.share(seeds_N))
        with clock.phase("rollout"):
            rollouts = self._sample_and_ask([self.prompts[index] for index in index_N], seeds_N)
        with clock.phase("rewards"):  # only the time that is not spent while sampling
            scores = self.rewards.collect()
        return [
            _response(index, self.prompts[index], rollouts[n], scores.get(n))
            for n, index in enumerate(index_N)
        ]

    def _sample_and_ask(self, prompt_N: Sequence[Prompt], seeds_N: Sequence[int]) -> dict[int, Rollout]:
        rollouts: dict[int, Rollout] = {}
        waiting: list[Rollout] = []
        for rollout in self.generator.generate([prompt.token_ids for prompt in prompt_N], seeds_N):
            rollouts[rollout.index] = rollout
            if can_be_learned(rollout.response_ids, rollout.ended, self.vocab_size):
                waiting.append(rollout)
            if len(waiting) == CALL_SIZE:
                self._ask(waiting, prompt_N)
                waiting = []
        self._ask(waiting, prompt_N)
        return rollouts

    def _ask(self, rollouts: Sequence[Rollout], prompt_N: Sequence[Prompt]) -> None:
        items = [
            {
                "prompt_token_ids": list(prompt_N[rollout.index].token_ids),
                "response_token_ids": list(rollout.response_ids),
            }
            for rollout in rollouts
        ]
        if items:
            self.rewards.submit([rollout.index for rollout in rollouts], items)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Sample from these weights from now on."""
        self.generator.load_weights(weights)

    def close(self) -> None:
        """Free the sampler's model."""
        self.generator.close()

    def held_out_share(self) -> float:
        """The share of held-out prompts whose greedy response the checker accepts."""
        prompts = self.workers.share(self.held_out)
        right = sum(
            self.checker.score(prompts[rollout.index], rollout, self.tokenizer)
            for rollout in self.generator.generate([prompt.token_ids for prompt in prompts], None)
        )
        return sum(self.workers.gather(right)) / len(self.held_out)


def _response(index: int, prompt: Prompt, rollout: Rollout, score: Score | None) -> Response:
    return Response(
        prompt=index,
        prompt_ids=prompt.token_ids,
        response_ids=rollout.response_ids,
        ended=rollout.ended,
        logp_T=np.array(rollout.logp_T, np.float32),
        reward_T=None if score is None else score.reward_T,
        logp_sft_T=None if score is None else score.logp_sft_T,
    )
