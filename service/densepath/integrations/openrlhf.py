"""The sum of a response's dense rewards in OpenRLHF, for the token ids that it sampled.

OpenRLHF 0.11 has one reward per response: `Experience.rewards` is `[B]`, and its trainer puts each on the
last token of its response. An agent's steps are summed too, so no part of the trainer can take one reward per
token.
"""

from __future__ import annotations

from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from densepath.client import AsyncClient, Client
from densepath.errors import InvalidItemError
from densepath.integrations.alignment import check_policy

#: Seconds for a response's reward, retries included. This is enough for a restart of the service.
DEADLINE = 600.0


class DensePathAgentExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]  # OpenRLHF carries no types
    """A single turn whose reward is the sum of its dense rewards, in nats.

    A module for `--train.agent_func_path` must have a subclass of it named `AgentExecutor`, which takes no
    arguments. Nothing is tokenised: the sampled ids are scored. All rewards come from the pair version that
    is served at the start. A failed score raises, which stops OpenRLHF.

    Args:
        url: the service, or its replicas.
        api_key: the API key of the service.

    Raises:
        DensepathError: the service cannot be reached.
    """

    def __init__(self, url: str | list[str], *, api_key: str | None = None) -> None:
        super().__init__()
        with Client(url, api_key=api_key) as client:
            self._pair = client.pair()
        self._model_version = str(self._pair["version"])
        self._checked = False  # OpenRLHF passes its tokenizer with the first prompt
        self.client = AsyncClient(url, api_key=api_key)

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """OpenRLHF's rollout with its `reward`. `extra_logs` has its length and whether it ended.

        Raises:
            AlignmentError: OpenRLHF's tokenizer is not the pair's; raised before the first prompt is sampled.
            InvalidItemError: the prompt has images.
            DensepathError: the response has no score.
        """
        if images:
            raise InvalidItemError("dense rewards are only for text, but this prompt has images")
        if not self._checked:
            check_policy(hf_tokenizer, self._pair)
            self._checked = True
        rollout: dict[str, Any] = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine
        )
        [(start, end)] = rollout["action_ranges"]
        ids = rollout["observation_tokens"]
        item = {"prompt_token_ids": ids[:start], "response_token_ids": ids[start:end]}
        [score] = await self.client.score([item], model_version=self._model_version, deadline=DEADLINE)
        logs = {"response_tokens": float(end - start), "ended": float(bool(score.ended))}
        return rollout | {"reward": score.sum, "scores": score.sum, "extra_logs": logs}
