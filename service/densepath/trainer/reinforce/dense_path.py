"""Dense-Path REINFORCE (arXiv 2510.02493): the SFT policy, improved by the reward that its own pair holds.

    repeat
        y ~ pi(. | x)                                              on-policy, temperature 1
        r_t  = log p_sft(y_t | s_t) - log p_reference(y_t | s_t)   from the service, over HTTP
        r'_t = r_t - b (log pi(y_t | s_t) - log p_sft(y_t | s_t))
        G_t  = r'_t + gamma G_{t+1}
        theta <- AdamW( 1/N sum over y, t of (G_t - baseline_t) grad log pi(y_t | s_t) )

It differs from PPO and GRPO in what it leaves out: no critic, no ratio and no clipping, one forward-backward
a batch, and a reward for every token instead of one a response.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from densepath.trainer.reinforce.batch import Response, weigh
from densepath.trainer.reinforce.guards import over_kl_budget, reward_is_hacked
from densepath.trainer.reinforce.learner import Learner, Weighted
from densepath.trainer.reinforce.sampling import Sampler
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.reinforce.step_row import Clock, Row, describe
from densepath.trainer.reinforce.workers import Workers


@dataclass(frozen=True)
class DensePath:
    """The parts of a run; `steps` goes through them."""

    settings: TrainSettings
    workers: Workers
    learner: Learner
    sampler: Sampler

    def steps(self, rows: list[Row]) -> Iterator[tuple[Row, list[Response]]]:
        """Each step's figures and this process's responses, after those in `rows`, to which it adds."""
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
            row = describe(step, everyone, self.workers.gather(figures), self.settings)
            if self._checks(step):
                with clock.phase("held_out"):
                    row["held_out"] = {"greedy": self.sampler.held_out_share()}
            rows.append(row | {"seconds": clock.seconds()})
            yield rows[-1], mine

    def _checks(self, step: int) -> bool:
        due = step % self.settings.check_every == 0 or step == self.settings.steps
        return due and bool(self.sampler.held_out)

    def why_stop(self, rows: list[Row]) -> str | None:
        """Why the run stops after these steps, or None to go on."""
        if len(rows) >= self.settings.steps:
            return f"all {self.settings.steps} steps are done"
        return over_kl_budget(rows, self.settings.kl_budget) or reward_is_hacked(
            rows, len(self.sampler.held_out)
        )
