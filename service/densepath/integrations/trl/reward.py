"""The sum of each completion's dense rewards, as a reward function for TRL's trainers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from densepath.client import AsyncClient, Client
from densepath.errors import InvalidRequestError
from densepath.integrations.alignment import check_policy
from densepath.integrations.trl.checks import check_columns, check_processing_class


class DenseReward:
    """An async reward function: `GRPOTrainer(reward_funcs=DenseReward(url, tokenizer), …)`.

    TRL gives a reward function the completion's token ids as they were sampled, but not the prompt's ids.
    These are made here as TRL makes them: by the same call of the same tokenizer on the same prompt. So
    `processing_class` must be the trainer's, and `chat_template_kwargs` those of its config. All calls ask
    for the pair version that is served when this object is made.

    Raises:
        InvalidRequestError: `processing_class` processes images, which the service cannot score.
        AlignmentError: the tokenizer is not the pair's.
        DensepathError: the service cannot be reached.
    """

    __name__ = "dense_reward"  # TRL's metrics are `rewards/dense_reward/mean` and the like

    def __init__(
        self,
        url: str | Sequence[str],
        processing_class: PreTrainedTokenizerBase,
        *,
        api_key: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        check_processing_class(processing_class)
        self._url, self._api_key = url, api_key
        self._tokenizer = processing_class
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        with Client(url, api_key=api_key) as client:
            pair = client.pair()
        check_policy(processing_class, pair)
        self._model_version = str(pair["version"])

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float]:
        """One sum per completion, in nats.

        Raises:
            DensepathError: a completion has no score. TRL stops.
        """
        check_columns(columns, ("image", "images", "environments"))
        _refuse_tools(completions)
        items = [
            {"prompt_token_ids": prompt_ids, "response_token_ids": ids}
            for prompt_ids, ids in zip(self.prompt_ids(prompts), completion_ids, strict=True)
        ]
        # Each call has its own client, so that no connection is left open when TRL's event loop ends.
        async with AsyncClient(self._url, api_key=self._api_key) as client:
            scores = await client.score(items, model_version=self._model_version)
        return [cast(float, score.sum) for score in scores]  # a failed score has raised

    def prompt_ids(self, prompts: Sequence[Any]) -> list[list[int]]:
        """The token ids of each prompt, as TRL's trainers make them, from texts or from lists of messages."""
        if isinstance(prompts[0], str):
            return list(self._tokenizer(text=list(prompts))["input_ids"])
        encoded = self._tokenizer.apply_chat_template(
            conversation=list(prompts),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self._chat_template_kwargs,
        )
        return list(encoded["input_ids"])


def _refuse_tools(completions: Sequence[Any]) -> None:
    """The output of a tool is among a completion's ids, and TRL does not report where."""
    if any(isinstance(completion, list) and len(completion) > 1 for completion in completions):
        raise InvalidRequestError(
            "a completion of several turns has tokens that the policy did not choose: use "
            "DensePathGRPOTrainer, which knows which ones"
        )
