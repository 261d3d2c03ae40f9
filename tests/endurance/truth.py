"""A fixed set of requests, and what transformers answers to them in fp32."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from densepath.engine.fake import FakeScorer
from densepath.engine.scorer import Scored
from densepath.engine.transformers import TransformersScorer
from densepath.sequences import Sequence, from_response
from densepath.wire import PackedRequest, pack_request, unpack_answer

#: Of one log-probability, in nats; the suite's bound for fp32.
TOLERANCE = 2e-5
FIRST_ID, LAST_ID = 6, 299

LogProbs = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Case:
    """One request to /v1/rewards, and both log-probabilities of each of its items."""

    content: bytes
    packed: bytes  # the same request in safetensors
    ids: list[str]
    tokens: int
    logps: list[LogProbs]

    def difference(self, body: bytes) -> float:
        """The largest difference of a log-probability in an answer in JSON.

        Raises AssertionError where the answer is not of this request, or where a reward is not the
        difference of its log-probabilities.
        """
        items = json.loads(body, parse_constant=_no_number)["items"]
        assert [item["id"] for item in items] == self.ids, "the items of another request"
        assert {item["status"] for item in items} == {"ok"}, "an item without a score in a 200"
        return max(_difference(item, *logps) for item, logps in zip(items, self.logps, strict=True))

    def packed_difference(self, body: bytes) -> float:
        """The same of an answer in safetensors."""
        arrays, response = unpack_answer(body)
        items = cast(list[dict[str, Any]], response["items"])
        assert [item["id"] for item in items] == self.ids, "the items of another request"
        names = ("sft_logprobs", "reference_logprobs", "rewards")
        rows = list(pairwise(arrays["offsets"].tolist()))
        return max(
            _difference({name: arrays[name][first:last] for name in names}, *logps)
            for (first, last), logps in zip(rows, self.logps, strict=True)
        )


def _difference(item: dict[str, Any], sft_T: NDArray[np.float32], reference_T: NDArray[np.float32]) -> float:
    got_sft_T, got_reference_T, reward_T = (
        np.array(item[name], np.float32) for name in ("sft_logprobs", "reference_logprobs", "rewards")
    )
    assert got_sft_T.shape == got_reference_T.shape == reward_T.shape == sft_T.shape, (
        "another count of tokens"
    )
    assert np.array_equal(reward_T, got_sft_T - got_reference_T), "a reward is not the difference"
    return float(max(np.abs(got_sft_T - sft_T).max(), np.abs(got_reference_T - reference_T).max()))


def _no_number(name: str) -> None:
    raise AssertionError(f"{name} in an answer")


def draw(
    count: int, *, items: int, seed: int, prompt: int = 60, response: int = 30
) -> list[list[tuple[list[int], list[int]]]]:
    """`count` requests of `items` prompts and responses in token ids, each of so many tokens at most."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(FIRST_ID, LAST_ID, size=rng.integers(low, high), endpoint=True).tolist()

    return [[(ids(1, prompt + 1), ids(2, response + 1)) for _ in range(items)] for _ in range(count)]


def make_cases(
    requests: Iterable[list[tuple[list[int], list[int]]]], score: Callable[[Sequence], Scored]
) -> list[Case]:
    """The requests with their right answers, by `score`."""
    cases = []
    for number, pairs in enumerate(requests):
        names = [f"{number}-{index}" for index in range(len(pairs))]
        items = [
            {"id": name, "prompt_token_ids": prompt, "response_token_ids": response}
            for name, (prompt, response) in zip(names, pairs, strict=True)
        ]
        scored = [score(from_response(*pair)) for pair in pairs]
        content = json.dumps({"items": items, "include": ["logprobs"]}).encode()
        lengths = [len(prompt) + len(response) for prompt, response in pairs]
        packed = PackedRequest(
            np.array([token for prompt, response in pairs for token in prompt + response], np.int64),
            np.cumsum([0, *lengths], dtype=np.int64),
            np.array([len(prompt) for prompt, _ in pairs], np.int64),
            None,
            {"ids": names, "include": ["logprobs"]},
        )
        logps = [(each.logp_sft_T, each.logp_reference_T) for each in scored]
        cases.append(Case(content, pack_request(packed), names, sum(lengths), logps))
    return cases


def by_transformers(sft: Path, reference: Path) -> Callable[[Sequence], Scored]:
    """The oracle of a pair, in fp32."""
    oracle = TransformersScorer(sft, reference, context_length=1024)
    oracle.load()
    return oracle.score_now


def by_fake(sequence: Sequence) -> Scored:
    """What the fake engine answers."""
    return asyncio.run(FakeScorer().score(sequence))
