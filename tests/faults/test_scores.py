"""Sequences that fail, a text that takes long, a client that does not read: the others notice nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.bodies import GOOD, TEXT, body
from api.running import Running, expected_rewards, make_service, pair, running
from api.test_connection import POST, sized
from densepath.engine.fake import FakeScorer
from densepath.pair.pair import Pair
from densepath.sequences import Tokenizer
from densepath.trainer.errors import TrainerError
from densepath.trainer.reinforce.reward_calls import RewardCalls

__all__ = ["pair"]  # a fixture

NAN_ID, RAISE_ID = 77, 78
KINDS = ("good", "NaN", "raising", "empty", "out of range")
CODES = {"NaN": "non_finite_score", "raising": "internal_error"}


@pytest.fixture(scope="module")
def broken(pair: Pair) -> Iterator[Running]:
    """A service whose engine fails on two ids."""
    scorer = FakeScorer(64, non_finite_after_id=NAN_ID, raise_on_id=RAISE_ID)
    with running(make_service(pair, scorer=scorer)) as served:
        yield served


def response(kind: str, index: int) -> list[int]:
    good = [5 + index % 50, 60 + index // 50]
    last = {"NaN": [NAN_ID], "raising": [RAISE_ID], "out of range": [320]}
    return [] if kind == "empty" else good + last.get(kind, [])


@settings(max_examples=25)
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=64, max_size=64))
def test_rows_17_19_47_any_items_of_a_batch_fail_and_the_others_keep_their_places(
    kinds: list[str], broken: Running
) -> None:
    items = [
        {"id": f"i{index}", "prompt_token_ids": [1], "response_token_ids": response(kind, index)}
        for index, kind in enumerate(kinds)
    ]
    answer = broken.score(*items, on_error="item", include=["logprobs", "returns"])
    assert answer.status_code == 200
    found = json.loads(answer.text, parse_constant=pytest.fail)["items"]
    assert [(each["index"], each["id"]) for each in found] == [(n, f"i{n}") for n in range(64)]
    for kind, item, each in zip(kinds, items, found, strict=True):
        if kind == "good":
            assert each["rewards"] == pytest.approx(
                expected_rewards([1], item["response_token_ids"]), rel=1e-6
            )
            continue
        assert set(each) == {"index", "id", "status", "error"}
        assert each["error"]["code"] == CODES.get(kind, "invalid_item")
    refused = broken.score(*items)
    if set(kinds) != {"good"}:
        assert refused.status_code in (422, 500)
        assert "rewards" not in refused.json()
    broken.idle()


def test_row_22_probes_are_answered_while_a_text_is_tokenised(
    broken: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    tokenise = Tokenizer.from_text

    def stuck(*args: object, **options: object) -> object:
        begun.set()
        assert go_on.wait(30)
        return tokenise(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Tokenizer, "from_text", stuck)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(broken.score, TEXT)
        try:
            assert begun.wait(30)
            for path in ("/livez", "/readyz", "/metrics"):
                assert broken.client.get(path).status_code == 200
            assert not waiting.done()
        finally:
            go_on.set()
        assert waiting.result().status_code == 200
    assert broken.score(GOOD).status_code == 200


def test_row_04_a_client_that_does_not_read_holds_no_tokens(broken: Running) -> None:
    content = body(*[{"id": "x" * 20_000, **GOOD}] * 200)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", broken.port))
        scored = broken.scorer.scored
        raw.sendall(POST + sized(content))
        broken.until(lambda: broken.scorer.scored == scored + 200)
        broken.until(lambda: broken.service.budget.queued_tokens == 0)
        unread = broken.now(lambda: [each.transport.get_write_buffer_size() for each in broken.connections])
        assert max(unread) > 1_000_000, "the answer is still being sent"
        assert broken.score(GOOD).status_code == 200
    broken.idle()


def test_row_46_a_trainer_takes_no_rewards_of_another_pair(pair: Pair) -> None:
    with running(make_service(pair)) as served:
        lifecycle, url = served.service.lifecycle, f"http://127.0.0.1:{served.port}"
        with RewardCalls(url, api_key=None, wait_seconds=30, on_wait=lambda _: None) as rewards:
            rewards.submit([0], [GOOD])
            assert rewards.collect().keys() == {0}
            rewards.submit([1], [GOOD])  # of the pair before the swap, or of none
            swapped = replace(lifecycle.served, pair=replace(pair, version="another-version"))
            served.now(lambda: setattr(lifecycle, "served", swapped))
            rewards.submit([2], [GOOD])
            with pytest.raises(TrainerError, match="another pair"):
                rewards.collect()
