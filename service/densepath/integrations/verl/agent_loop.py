"""Returns one reward per token from the rollout; verl's agent loop returns one number, on the last token."""

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
    """One per response token. In `rm_scores`, tokens that the policy did not choose have 0."""

    @classmethod
    def of(cls, output: AgentLoopOutput) -> Self:
        """The same rollout. Its `reward_score` is a list of rewards; in the new one it is their sum.

        Raises:
            InvalidRequestError: the agent loop has set its own score.
        """
        if not isinstance(output.reward_score, list):
            raise InvalidRequestError(
                "the agent loop has its own reward, which cannot be combined with one reward per token"
            )
        reward_T = output.reward_score
        total = sum(r for r, chosen in zip(reward_T, output.response_mask, strict=True) if chosen)
        fields = {**vars(output), "reward_score": total, "reward_T": reward_T}
        dense: Self = cls.model_construct(output.model_fields_set | {"reward_T"}, **fields)
        return dense

    def as_dict(self) -> dict[str, Any]:
        """The fields that are sent to the trainer."""
        fields: dict[str, Any] = super().as_dict()
        fields["rm_scores"] = torch.tensor(self.reward_T) * fields["response_mask"]
        return fields


def _worker_class() -> Any:
    """verl's worker as a Ray actor class, with the reward manager's list instead of its one number."""
    # Ray forbids inheriting from an actor class, so this inherits from the class that verl's actor class was
    # made from. That class cannot be imported, so Ray pickles it by value. This one is local, so it is
    # pickled too.
    try:
        base: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__
    except AttributeError as error:
        raise IntegrationError(
            "this adapter needs verl 0.9.1 and Ray 2.60, but other releases are installed"
        ) from error

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
