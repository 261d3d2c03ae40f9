"""One reward a token out of the rollout, where verl's agent loop carries one number, on the last token."""

from __future__ import annotations

from typing import Any, Self

import ray
import torch
from pydantic import Field
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ

from densepath.errors import InvalidRequestError
from densepath.integrations import IntegrationError
from densepath.integrations.verl.settings import check


class DenseOutput(AgentLoopOutput):  # type: ignore[misc]  # verl carries no types
    """A rollout whose `rm_scores` has the reward of each token."""

    reward_T: list[float] = Field(exclude=True)
    """One for each response token; those that the policy did not choose are left out of `rm_scores`."""

    @classmethod
    def of(cls, output: AgentLoopOutput) -> Self:
        """The same rollout, whose `reward_score` is a list of rewards; of the new one it is their sum.

        Raises:
            InvalidRequestError: the agent loop has set a score of its own.
        """
        if not isinstance(output.reward_score, list):
            raise InvalidRequestError("the agent loop brings a reward of its own beside one reward a token")
        reward_T = output.reward_score
        total = sum(r for r, chosen in zip(reward_T, output.response_mask, strict=True) if chosen)
        fields = {**vars(output), "reward_score": total, "reward_T": reward_T}
        dense: Self = cls.model_construct(output.model_fields_set | {"reward_T"}, **fields)
        return dense

    def as_dict(self) -> dict[str, Any]:
        """What goes to the trainer."""
        fields: dict[str, Any] = super().as_dict()
        fields["rm_scores"] = torch.tensor(self.reward_T) * fields["response_mask"]
        return fields


def _worker_class() -> Any:
    """verl's worker, with the reward manager's list in the place of its number, as a Ray actor class."""
    # Ray forbids to inherit from an actor class, so this is from the class that verl's was made of. No import
    # finds that one, so Ray pickles it by value; this one is local, so that it goes along.
    try:
        base: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__
    except AttributeError as error:
        raise IntegrationError("this adapter is made for verl 0.9.1 and Ray 2.60: not for these") from error

    class DenseAgentLoopWorker(base):  # type: ignore[misc]
        async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict[str, Any]) -> None:
            for index, output in enumerate(outputs):
                await super()._compute_score([output], kwargs)
                outputs[index] = DenseOutput.of(output)

    return ray.remote(DenseAgentLoopWorker)


class DenseAgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]
    """`actor_rollout_ref.rollout.agent.agent_loop_manager_class`, for any agent loop.

    Raises:
        InvalidRequestError: a setting that would sum or misplace rewards; the message says what to set.
    """

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        check(config)
        super().__init__(config, *args, **options)
        self.agent_loop_workers_class = _worker_class()
