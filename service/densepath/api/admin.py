"""The routes of the operator, under /admin. The edge has checked their key."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from densepath.api.body import deadline, in_pool, parse_json, read_json_body, validate, while_wanted
from densepath.api.engine_calls import admitted
from densepath.api.openapi import body_of
from densepath.api.routes import ERRORS, pair_answer
from densepath.api.schemas import PairAnswer, SelftestAnswer, SwapRequest
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.api.swap import PairSwap, Swapping
from densepath.verification.selftest import measure_noise, probes_of


def router(service: Service, swapping: Swapping | None) -> APIRouter:
    """The admin routes."""
    routes = APIRouter(responses=ERRORS)
    pair_swap = PairSwap(service.lifecycle, service.metrics, swapping)

    @routes.put("/admin/pair", response_model=PairAnswer, openapi_extra=body_of(SwapRequest))
    async def swap_pair(request: Request) -> PairAnswer:
        """Serve another pair from under --pair-root, once it is checked, loaded and verified.

        The old pair is served until then, and for good if anything fails. The swap ends with its request: a
        client that hangs up or whose deadline passes cancels it.
        """
        service.lifecycle.take()
        until = deadline(request)
        body = await while_wanted(read_json_body(request, service), service, until)

        async def work() -> Served:
            asked = await in_pool(service, lambda each: validate(SwapRequest, parse_json(each)), body)
            return await pair_swap.swap(asked.sft, asked.reference)

        return pair_answer(await while_wanted(work(), service, until, reader=request), service.limits)

    @routes.post("/admin/selftest", response_model=SelftestAnswer)
    async def selftest(request: Request) -> SelftestAnswer:
        """Score the same sequences alone, together, with a cold and with a warm cache, and compare."""
        served = service.lifecycle.take()
        work = _selftest(served, service)
        return await while_wanted(work, service, deadline(request), reader=request)

    return routes


async def _selftest(served: Served, service: Service) -> SelftestAnswer:
    probes = await asyncio.to_thread(probes_of, served.pair, context_length=served.scorer.context_length)
    counted = min(probes.tokens, service.limits.max_queued_tokens)
    async with admitted(len(probes.probes), counted, service):
        noise = await measure_noise(served.scorer, probes)
    service.metrics.score_noise.set(noise)
    return SelftestAnswer(
        model_version=served.pair.version,
        largest_difference=noise,
        probes=len(probes.probes),
        tokens=probes.tokens,
    )
