"""The service as the trainer sees it: away and back, another pair, a score that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import ClassVar

import httpx
import numpy as np
import pytest

from densepath.client import core
from densepath.errors import NonFiniteScoreError
from densepath.trainer.errors import ServiceAwayError, TrainerError
from densepath.trainer.reinforce import reward_calls
from densepath.trainer.reinforce.reward_calls import RewardCalls

ITEM = {"prompt_token_ids": [7, 8, 9], "response_token_ids": [10, 11, 2]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits between attempts: what is tested is what happens, not when."""
    from densepath.client import gate

    monkeypatch.setattr(gate, "_JITTER_SECONDS", 0.0)
    monkeypatch.setattr(reward_calls, "LONGEST_WAIT_SECONDS", 0.01)


class Faulty(httpx.HTTPTransport):
    """The real connection, with answers put before it."""

    answers: ClassVar[list[httpx.Response | type[Exception]]] = []
    sent = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        Faulty.sent += 1
        if request.url.path == "/v1/rewards" and Faulty.answers:
            answer = Faulty.answers.pop(0)
            if isinstance(answer, type):
                raise answer("refused", request=request)  # type: ignore[call-arg]
            return answer
        return super().handle_request(request)


def refusal(status: int, code: str, message: str = "no") -> httpx.Response:
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return httpx.Response(status, content=json.dumps({"error": error}))


@pytest.fixture
def calls(service: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RewardCalls]:
    client = reward_calls.Client
    monkeypatch.setattr(
        reward_calls, "Client", lambda url, api_key: client(url, api_key=api_key, transport=Faulty())
    )
    Faulty.answers, Faulty.sent = [], 0

    def make(wait_seconds: float = 30.0, said: list[str | None] | None = None) -> RewardCalls:
        said = [] if said is None else said
        return RewardCalls(service, api_key=None, wait_seconds=wait_seconds, on_wait=said.append)

    return make


def test_rewards_come_back_by_index_with_both_log_probabilities(calls: Callable[..., RewardCalls]) -> None:
    with calls() as rewards:
        rewards.submit([4, 2], [ITEM, {**ITEM, "response_token_ids": [12]}])
        rewards.submit([0], [ITEM])
        scores = rewards.collect()
        assert sorted(scores) == [0, 2, 4]
        assert [len(scores[n].reward_T) for n in (0, 2, 4)] == [3, 1, 3]  # type: ignore[arg-type]
        np.testing.assert_array_equal(scores[0].reward_T, scores[4].reward_T)
        np.testing.assert_allclose(
            scores[0].reward_T, scores[0].logp_sft_T - scores[0].logp_reference_T, atol=1e-6
        )
        assert rewards.collect() == {}


def test_row_49_a_service_that_is_away_is_waited_for_and_it_is_said(
    calls: Callable[..., RewardCalls],
) -> None:
    said: list[str | None] = []
    with calls(said=said) as rewards:
        Faulty.answers = [httpx.ConnectError] * 9 + [refusal(503, "engine_unavailable")] * 9
        rewards.submit([0], [ITEM])
        scores = rewards.collect()
    assert len(scores[0].reward_T) == 3  # type: ignore[arg-type]
    assert len(said) == 2  # one line when it begins and one when it ends, however often it is tried
    assert said[-1] is None
    assert any(words and "the service has not answered" in words for words in said)


def test_row_49_one_that_stays_away_ends_the_run_in_words(calls: Callable[..., RewardCalls]) -> None:
    with calls(wait_seconds=0.05) as rewards:
        Faulty.answers = [httpx.ConnectError] * 10_000
        rewards.submit([0], [ITEM])
        with pytest.raises(
            ServiceAwayError, match=r"did not answer within 0\.05 s .* repeat the same command"
        ):
            rewards.collect()


def test_row_46_another_pair_ends_the_run_in_words(calls: Callable[..., RewardCalls]) -> None:
    with calls() as rewards:
        Faulty.answers = [refusal(409, "model_version_mismatch")]
        rewards.submit([0], [ITEM])
        rewards.submit([1], [ITEM])
        with pytest.raises(TrainerError, match="now serves another pair"):
            rewards.collect()


def test_row_49_a_score_that_is_none_is_an_error_and_is_not_asked_again(
    calls: Callable[..., RewardCalls],
) -> None:
    with calls() as rewards:
        Faulty.answers = [refusal(500, "non_finite_score")]
        before = Faulty.sent
        rewards.submit([0], [ITEM])
        with pytest.raises(NonFiniteScoreError):
            rewards.collect()
        assert Faulty.sent <= before + 2  # the limits are asked for once
    assert core.TIMEOUT.read is not None, "no read waits for ever"
