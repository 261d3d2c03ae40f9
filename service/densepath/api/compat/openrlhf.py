"""POST /get_reward, OpenRLHF's remote reward model: the sum of each query's rewards."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from densepath.api.answers import answer, to_json, write_answer
from densepath.api.body import answer_json, check_count, in_pool, parse_json, validate, wanted
from densepath.api.items import Batch, Item
from densepath.api.openapi import body_of
from densepath.api.rewards import count_scores, score_batch
from densepath.api.schemas import ErrorAnswer, RewardsOptions, Strict, Texts
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.errors import InvalidItemError, InvalidRequestError
from densepath.sequences import Sequence


class GetRewardRequest(Strict):
    """What OpenRLHF's trainer sends. A query is a prompt and its response as text with its special tokens."""

    query: Texts
    prompts: Texts | None = None
    labels: list[Any] | None = None


class ExtraLogs(BaseModel):
    """What the trainer logs beside the reward: one number per query."""

    response_tokens: list[float]
    ended: list[float]


class GetRewardAnswer(BaseModel):
    """One number for each query, in order."""

    rewards: list[float]
    scores: list[float]
    extra_logs: ExtraLogs


def router(service: Service) -> APIRouter:
    """The route of a remote reward model."""
    routes = APIRouter(
        responses={"default": {"model": ErrorAnswer, "description": "Every error, in OpenAI's shape"}}
    )

    @routes.post("/get_reward", response_model=GetRewardAnswer, openapi_extra=body_of(GetRewardRequest))
    async def get_reward(request: Request) -> Response:
        """The sum of the rewards of each query's response. One query that cannot be scored fails them all."""

        async def work(body: bytes, served: Served) -> bytes:
            with service.traces.stage("parse"):
                batch = await in_pool(service, _batch, body, served, service.limits.max_items)
            results = await score_batch(batch, service)
            count_scores(results, service)
            return await write_answer(lambda: to_json(_answer(answer(batch, results)["items"])), service)

        return await answer_json(request, service, work)

    return routes


def _batch(body: bytes, served: Served, max_items: int) -> Batch:
    asked = validate(GetRewardRequest, check_count(parse_json(body), "query", max_items))
    count = len(asked.query)
    if not 1 <= count <= max_items:
        raise InvalidItemError(f"query has {count} entries: a request holds 1 to {max_items}", param="query")
    prompts = [""] * count if asked.prompts is None else asked.prompts
    if len(prompts) != count:
        raise InvalidItemError(
            f"prompts has {len(prompts)} entries for {count} queries: send one for each", param="prompts"
        )
    pairs = zip(asked.query, prompts, strict=True)
    sequences = [
        _sequence(index, query, prompt, served) for index, (query, prompt) in enumerate(wanted(pairs))
    ]
    return Batch(served, RewardsOptions(), [Item(None, sequence) for sequence in sequences])


def _sequence(index: int, query: str, prompt: str, served: Served) -> Sequence:
    place = f"query[{index}]"
    try:
        served.check_text(query)
        return served.check(served.tokenizer.from_whole(query, prompt))
    except InvalidRequestError as error:
        raise type(error)(f"{place}: {error.message}", param=place) from error


def _answer(items: list[dict[str, Any]]) -> dict[str, Any]:
    sums = [item["sum"] for item in items]
    return {
        "rewards": sums,
        "scores": sums,
        "extra_logs": {
            "response_tokens": [float(len(item["rewards"])) for item in items],
            "ended": [float(item["ended"]) for item in items],
        },
    }
