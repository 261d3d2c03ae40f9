"""POST /generate as SGLang answers it, for scoring: `input_ids` or `text`, `return_logprob`."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from densepath.api.answers import to_json, write_answer
from densepath.api.body import answer_json, check_count, in_pool, parse_json, validate, wanted
from densepath.api.compat.sglang_schemas import (
    SglangAnswer,
    SglangErrorAnswer,
    SglangModelInfo,
    SglangRequest,
    SglangSampling,
    TokenLogp,
)
from densepath.api.compat.views import Score, score_view
from densepath.api.models import model_view
from densepath.api.openapi import body_of
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.errors import InvalidItemError, InvalidRequestError
from densepath.sequences import Sequence, as_ids

Value = TypeVar("Value")


@dataclass(frozen=True)
class Prompt:
    """One prompt of a request and what is asked of it. `start` is the first token that the answer's list
    of input tokens names; its own log-probability is None, as SGLang's is.
    """

    rid: str
    token_ids: list[int]
    params: SglangSampling
    with_logprobs: bool
    start: int
    top: int

    @property
    def with_next(self) -> bool:
        """Whether the likeliest next token is asked for."""
        return self.params.max_new_tokens == 1

    def sequence(self) -> Sequence:
        """The tokens to score, those after `start`; there may be none."""
        # The row that predicts the next token needs a token after it. Which token it is changes no number.
        ids = [*self.token_ids, self.token_ids[-1]] if self.with_next else self.token_ids
        first = min(self.start + 1, len(self.token_ids))
        return Sequence(as_ids(ids), np.arange(first, len(ids)))


def router(service: Service) -> APIRouter:
    """SGLang's routes."""
    routes = APIRouter(responses={"default": {"model": SglangErrorAnswer, "description": "SGLang's error"}})

    @routes.post(
        "/generate",
        response_model=SglangAnswer | list[SglangAnswer],
        openapi_extra=body_of(SglangRequest),
    )
    async def generate(
        request: Request,
        model: Annotated[
            str | None, Query(description="the body's `model`, for clients that cannot send one")
        ] = None,
    ) -> Response:
        """Log-probabilities of prompts by one model of the pair, as SGLang answers. Nothing is sampled."""

        async def work(body: bytes, served: Served) -> bytes:
            with service.traces.stage("parse"):
                asked, prompts = await in_pool(service, _read, body, served, service.limits.max_items)
                top = max(max(prompt.top, int(prompt.with_next)) for prompt in prompts)
                view = model_view(asked.model or model, served, top=top)
            scores = await score_view([prompt.sequence() for prompt in prompts], view, served, service)
            seconds = asyncio.get_running_loop().time() - request.state.began

            def make() -> bytes:
                answers = _answers(asked, prompts, scores, seconds, served)
                return to_json(answers if _batched(asked) else answers[0])

            return await write_answer(make, service)

        return await answer_json(request, service, work)

    @routes.get("/model_info", response_model=SglangModelInfo)
    @routes.get("/get_model_info", response_model=SglangModelInfo)
    async def model_info() -> SglangModelInfo:
        """What SGLang's client reads first. Where SGLang answers paths, this answers names."""
        served = service.lifecycle.served
        name = served.model_name
        return SglangModelInfo(
            model_path=name, served_model_name=name, tokenizer_path=name, weight_version=served.pair.version
        )

    return routes


def _read(body: bytes, served: Served, max_items: int) -> tuple[SglangRequest, list[Prompt]]:
    asked = validate(SglangRequest, check_count(parse_json(body), "input_ids", max_items))
    prompts = _prompts(asked, served, max_items)
    for prompt in prompts:
        served.check_length([prompt.token_ids], more=prompt.with_next)
    return asked, prompts


def _batched(asked: SglangRequest) -> bool:
    if asked.text is not None:
        return not isinstance(asked.text, str)
    ids = asked.input_ids
    return ids is not None and len(ids) > 0 and isinstance(ids[0], list)


def _prompts(asked: SglangRequest, served: Served, max_items: int) -> list[Prompt]:
    """The tokenised prompts, each with its own options."""
    if (asked.text is None) == (asked.input_ids is None):
        raise InvalidRequestError("send either text or input_ids", param="input_ids")
    if asked.stream:
        raise InvalidRequestError("a score is sent as a whole: leave stream out", param="stream")
    value: Any = asked.input_ids if asked.text is None else asked.text
    many: list[Any] = value if _batched(asked) else [value]
    count = len(many)
    if not 1 <= count <= max_items:
        raise InvalidItemError(f"{count} prompts: a request holds 1 to {max_items}", param="text")
    params = _each(asked.sampling_params, SglangSampling(), count, "sampling_params")
    with_logprobs = _each(asked.return_logprob, False, count, "return_logprob")
    starts = _each(asked.logprob_start_len, -1, count, "logprob_start_len")
    tops = _each(asked.top_logprobs_num, 0, count, "top_logprobs_num")
    prompts = []
    if asked.text is not None:
        served.check_text(*many)
    for index, rid in enumerate(wanted(_rids(asked, count))):
        _refuse_generation(params[index])
        ids = many[index] if asked.text is None else served.tokenizer.encode(many[index])
        start = _start(starts[index] if with_logprobs[index] else -1, ids, index)
        top = tops[index] if with_logprobs[index] else 0
        prompts.append(Prompt(rid, ids, params[index], with_logprobs[index], start, top))
    return prompts


def _each(value: Value | list[Value] | None, default: Value, count: int, name: str) -> list[Value]:
    """One value per prompt. SGLang accepts one value for all prompts, or a list."""
    if not isinstance(value, list):
        return [default if value is None else value] * count
    if len(value) != count:
        raise InvalidRequestError(f"{name} has {len(value)} entries for {count} prompts", param=name)
    return value


def _rids(asked: SglangRequest, count: int) -> list[str]:
    if asked.rid is None:
        return [uuid.uuid4().hex for _ in range(count)]
    if isinstance(asked.rid, str) and _batched(asked):
        return [f"{asked.rid}_{index}" for index in range(count)]
    return _each(asked.rid, "", count, "rid")


def _refuse_generation(params: SglangSampling) -> None:
    if params.max_new_tokens not in (0, 1):
        raise InvalidRequestError(
            "this service scores and does not generate: send max_new_tokens 0 or 1",
            param="sampling_params.max_new_tokens",
        )
    # In SGLang, the log-probabilities of a prompt are those of temperature 1 in every case.
    if params.max_new_tokens == 1 and params.temperature not in (None, 0, 1):
        raise InvalidRequestError(
            "the next token is the likeliest one, at temperature 1: send temperature 0 or 1",
            param="sampling_params.temperature",
        )
    if params.n not in (None, 1):
        raise InvalidRequestError(
            "this service scores and does not generate: send n 1", param="sampling_params.n"
        )


def _start(asked: int, ids: list[int], index: int) -> int:
    """The index at which the answer's list begins; the end of the prompt for -1."""
    if not ids:
        raise InvalidItemError(f"prompt {index} is empty: it must have a token", param="input_ids")
    if asked > len(ids):
        raise InvalidRequestError(
            f"logprob_start_len is {asked} and prompt {index} has {len(ids)} tokens: send at most that",
            param="logprob_start_len",
        )
    return len(ids) if asked < 0 else asked


def _answers(
    asked: SglangRequest, prompts: list[Prompt], scores: list[Score | None], seconds: float, served: Served
) -> list[dict[str, Any]]:
    texts = _texts(prompts, scores, served) if asked.return_text_in_logprobs else {}
    answers = []
    for prompt, score in zip(prompts, scores, strict=True):
        answer = _answer(prompt, score, texts, seconds, served)
        if asked.return_prompt_token_ids:
            answer["prompt_token_ids"] = prompt.token_ids
        answers.append(answer)
    return answers


def _texts(prompts: list[Prompt], scores: list[Score | None], served: Served) -> dict[int, str]:
    """Each id that an answer may name → its own text."""
    ids = {token_id for prompt in prompts for token_id in prompt.token_ids}
    for score in scores:
        ids |= set(score[1].top_ids_T_K.ravel().tolist()) if score else set()
    return dict(zip(ids, served.tokenizer.token_strings(list(ids)), strict=True))


def _answer(
    prompt: Prompt, score: Score | None, texts: dict[int, str], seconds: float, served: Served
) -> dict[str, Any]:
    following = score[1].top_ids_T_K[-1, :1].tolist() if score and prompt.with_next else []
    params = prompt.params
    ended = not params.ignore_eos and any(token_id in served.pair.eos_token_ids for token_id in following)
    shown = [] if ended and not params.no_stop_trim else following
    skip_special_tokens = params.skip_special_tokens is not False
    return {
        "text": served.tokenizer.decode(shown, skip_special_tokens=skip_special_tokens),
        "output_ids": following,
        "meta_info": {
            "id": prompt.rid,
            "finish_reason": {"type": "stop", "matched": following[0]}
            if ended
            else {"type": "length", "length": len(following)},
            "prompt_tokens": len(prompt.token_ids),
            "weight_version": served.pair.version,
            "num_retractions": 0,
            **(_logprobs(prompt, score, texts) if prompt.with_logprobs else {}),
            "reasoning_tokens": 0,
            "completion_tokens": len(following),
            "cached_tokens": score[0].cached_tokens if score else 0,
            "e2e_latency": seconds,
            "response_sent_to_client_ts": time.time(),
        },
    }


def _logprobs(prompt: Prompt, score: Score | None, texts: dict[int, str]) -> dict[str, Any]:
    """SGLang's lists: each token, and the most likely tokens at its position."""

    def entry(logp: float | None, token_id: int) -> TokenLogp:
        return logp, token_id, texts.get(token_id)

    ranked = None if score is None else score[1]
    logp_T: list[float] = [] if ranked is None else ranked.logp_T.tolist()
    rows_T = (
        []
        if ranked is None
        else [
            [entry(*pair) for pair in zip(logps, ids, strict=True)]
            for logps, ids in zip(ranked.top_logp_T_K.tolist(), ranked.top_ids_T_K.tolist(), strict=True)
        ]
    )
    named = prompt.token_ids[prompt.start :]
    first = [None] if named else []
    count = len(named) - len(first)  # the rows after these belong to the next token
    following = [row[0] for row in rows_T[count:]]
    fields: dict[str, Any] = {
        "input_token_logprobs": [entry(*pair) for pair in zip([*first, *logp_T[:count]], named, strict=True)],
        "output_token_logprobs": following,
        "output_token_logprobs_length": len(following),
    }
    if prompt.top:
        fields["input_top_logprobs"] = [*first, *(row[: prompt.top] for row in rows_T[:count])]
        fields["output_top_logprobs"] = [row[: prompt.top] for row in rows_T[count:]]
    return fields
