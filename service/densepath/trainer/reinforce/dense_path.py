"""Dense-Path REINFORCE (arXiv 2510.02493): improving the SFT policy with the rewards of its own pair.

    repeat
        y ~ pi(. | x)                                              on-policy, temperature 1
        r_t  = log p_sft(y_t | s_t) - log p_reference(y_t | s_t)   from the service, over HTTP
        r'_t = r_t - b (log pi(y_t | s_t) - log p_sft(y_t | s_t))
        G_t  = r'_t + gamma G_{t+1}
        theta <- AdamW( 1/N sum over y, t of (G_t - baseline_t) grad log pi(y_t | s_t) )

Unlike PPO and GRPO, it has no critic, no probability ratio and no clipping. It makes one forward-backward
pass per batch, and has one reward per token instead of one per response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densepath.rewards.advantages import advantages
from densepath.rewards.reward import returns_to_go
from densepath.trainer.reinforce.batch import Response, make_batch
from densepath.trainer.reinforce.guards import over_kl_budget, reward_is_hacked
from densepath.trainer.reinforce.learner import Learner, Weighted
from densepath.trainer.reinforce.sampling import Sampler
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.reinforce.step_row import Clock, make_row
from densepath.trainer.reinforce.workers import Workers
from densepath.trainer.run_files import Row


@dataclass(frozen=True)
class DensePath:
    """The parts of a run. `steps` runs the algorithm."""

    settings: TrainSettings
    workers: Workers
    learner: Learner
    sampler: Sampler

    def steps(self, done: Sequence[Row]) -> Iterator[tuple[Row, list[Response]]]:
        """Yield each step's figures and this process's responses, after the steps in `done`."""
        rows = list(done)
        while self.why_stop(rows) is None:
            step, clock = len(rows) + 1, Clock()
            mine = self.sampler.sample(step, clock)
            everyone = [response for share in self.workers.gather(mine) for response in share]
            advantage_N = self.workers.share(weigh(everyone, self.settings))
            with clock.phase("forward_backward"):
                weighted = [
                    Weighted(response.prompt_ids, response.response_ids, advantage_T)
                    for response, advantage_T in zip(mine, advantage_N, strict=True)
                ]
                figures = self.learner.step(weighted, n_responses=len(everyone))
            with clock.phase("weight_update"):
                self.sampler.load_weights(self.learner.weights())
            row = make_row(step, everyone, self.workers.gather(figures), self.settings)
            if self._checks(step):
                with clock.phase("held_out"):
                    row["held_out"] = {"greedy": self.sampler.held_out_share()}
            rows.append(row | {"seconds": clock.seconds()})
            yield rows[-1], mine

    def _checks(self, step: int) -> bool:
        due = step % self.settings.check_every == 0 or step == self.settings.steps
        return due and bool(self.sampler.held_out)

    def why_stop(self, rows: list[Row]) -> str | None:
        """Why the run stops after these steps; None if it continues."""
        if len(rows) >= self.settings.steps:
            return f"all {self.settings.steps} steps are done"
        return over_kl_budget(rows, self.settings.kl_budget) or reward_is_hacked(
            rows, len(self.sampler.held_out)
        )


def weigh(responses_N: Sequence[Response], settings: TrainSettings) -> list[NDArray[np.float64]]:
    """A_t = G_t - baseline_t of every response, float64 [T] each; zeros if it is not learned from.

    Raises TrainerError if there is no response to learn from.
    """
    batch = make_batch(responses_N, settings)

    reward_N_T = batch.reward_N_T  # r_t
    less_kl_N_T = reward_N_T - settings.kl * (batch.logp_N_T - batch.logp_sft_N_T)  # r'_t
    return_N_T = returns_to_go(less_kl_N_T, settings.gamma)  # G_t
    advantage_N_T = advantages(return_N_T, batch.mask_N_T, settings.baseline, batch.prompt_N)  # A_t

    learned = iter(advantage_N_T)
    length_N = [len(response.response_ids) for response in responses_N]
    return [
        next(learned)[:length] if response.learned else np.zeros(length)
        for response, length in zip(responses_N, length_N, strict=True)
    ]
