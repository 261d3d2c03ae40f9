"""A request takes what is served once: an answer never mixes two pairs."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from api.bodies import GOOD
from api.running import CONTEXT_LENGTH, make_service, running
from densepath.engine.fake import FakeScorer
from densepath.pair.pair import Pair

IDS = [3, 4, 5]
#: Of each route: a request, and where its answer names the version.
ROUTES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "/v1/rewards": ({"items": [GOOD], "include": ["tokens"]}, ("model_version",)),
    "/v1/completions": (
        {"model": "sft", "prompt": IDS, "echo": True, "logprobs": 0, "max_tokens": 0},
        ("system_fingerprint",),
    ),
    "/generate": (
        {
            "input_ids": IDS,
            "return_logprob": True,
            "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 0},
        },
        ("meta_info", "weight_version"),
    ),
}


@pytest.mark.parametrize("path", ROUTES)
def test_an_answer_names_the_pair_that_scored_it(path: str, pair: Pair) -> None:
    body, place = ROUTES[path]

    def version_of(answer: Any) -> str:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        for key in place:
            found = found[key]
        return str(found)

    gate = asyncio.Event()
    service = make_service(pair, scorer=FakeScorer(CONTEXT_LENGTH, gate=gate))
    with running(service) as served, ThreadPoolExecutor(1) as threads:
        lifecycle, old = service.lifecycle, served.scorer
        waiting = threads.submit(served.client.post, path, json=body)
        served.until(old.started.is_set)
        other = replace(pair, version="another-version")
        swapped = replace(lifecycle.served, pair=other, scorer=FakeScorer(CONTEXT_LENGTH))
        assert served.now(lambda: lifecycle.switch(swapped)).scorer is old
        assert served.metric("densepath_pair_info", model="default", version=pair.version, verified="no") == 0
        assert version_of(served.client.post(path, json=body)) == "another-version"
        served.now(gate.set)
        assert version_of(waiting.result(timeout=30)) == pair.version
        assert (old.scored, served.scorer.scored) == (1, 1)
        served.now(lambda: setattr(old, "dead", True))
        assert served.metric("densepath_engine_up") == 1, "it is that of the new engine"
