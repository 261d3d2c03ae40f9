"""Both clients before the shipped service, and between them a network that fails.

Whatever it does, a call ends in what the service answers without it, or in an error of the contract; nothing
is lost or answered twice, and the attempts stay within the retry budget.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api.running import Running, make_service, pair, running
from client.conftest import Blocking
from client.fault_proxy import Fault, FaultProxy, fault_proxy, unavailable
from densepath.client import Client, Scores
from densepath.client.gate import REQUESTS_A_RETRY, RETRIES
from densepath.config import Limits
from densepath.errors import DeadlineExceededError, DensepathError, UnavailableError
from densepath.pair.pair import Pair
from live import free_port, start, wait_ready

__all__ = ["pair"]

LIMITS = Limits(max_items=3, max_body_bytes=200_000, max_queued_tokens=4000)
ITEMS: list[dict[str, Any]] = [  # each of another prompt, so that every replica has some
    *({"id": f"t{n}", "prompt_token_ids": [1, n], "response_token_ids": [7 + n, 9, 2]} for n in range(9)),
    *({"token_ids": [2, n, 4, 5, 6], "response_mask": [0, 0, 1, 0, 1]} for n in range(5)),
    *({"id": f"x{n}", "prompt": f"the sum {n}", "response": "is", "append_eos": True} for n in range(4)),
]
N_REQUESTS = 3 + 2 + 2

STORM = [
    unavailable(),
    unavailable("503 Service Unavailable", b"<html>", "Retry-After: 0"),
    unavailable("502 Bad Gateway", b"<html>", "Content-Type: text/html"),
    unavailable("503 x", b'{"error": {"code": "overloaded", "message": "full", "param": null, "type": "s"}}'),
]


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Running]:
    with running(make_service(pair, limits=LIMITS)) as service:
        yield service


@pytest.fixture
def proxy(served: Running) -> Iterator[FaultProxy]:
    with fault_proxy(served.port) as between:
        yield between


@pytest.fixture(scope="module")
def direct(served: Running) -> Scores:
    with Client(f"http://127.0.0.1:{served.port}") as client:
        return client.score(ITEMS, include=["logprobs", "tokens"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.client.gate._JITTER_SECONDS", 0.0)


@contextmanager
def sync_client(*urls: str) -> Iterator[Client]:
    with Client(list(urls)) as client:
        yield client


@contextmanager
def async_client(*urls: str) -> Iterator[Any]:
    client = Blocking(list(urls))
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(params=[sync_client, async_client])
def open_client(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


def assert_same(scores: Scores, direct: Scores) -> None:
    assert [score.index for score in scores] == list(range(len(ITEMS)))
    assert [score.id for score in scores] == [item.get("id") for item in ITEMS]
    assert scores.model_version == direct.model_version
    assert scores.usage == direct.usage
    for score, expected in zip(scores, direct, strict=True):
        for name in ("reward_T", "logp_sft_T", "logp_reference_T", "response_token_ids"):
            np.testing.assert_array_equal(getattr(score, name), getattr(expected, name))


def score(open_client: Callable[..., Any], proxy: FaultProxy, **options: Any) -> Scores | DensepathError:
    """The outcome of one call, its attempts held to the budget."""
    began = time.monotonic()
    with open_client(proxy.url) as client:
        try:
            return client.score(ITEMS, include=["logprobs", "tokens"], **options)  # type: ignore[no-any-return]
        except DensepathError as error:
            return error
        finally:
            n_requests = 1 + N_REQUESTS
            seconds = int(time.monotonic() - began) + 1
            assert proxy.attempts <= n_requests + RETRIES + n_requests // REQUESTS_A_RETRY + seconds


FAULTS: dict[str, Fault] = {
    "late": Fault(delay=0.02),
    "lost and closed": Fault(lost=True),
    "lost and reset": Fault(lost=True, reset=True),
    "nothing of the answer": Fault(cut_after=0),
    "reset after it was answered": Fault(cut_after=0, reset=True),
    "cut in the status line": Fault(cut_after=9),
    "cut in the headers": Fault(cut_after=60),
    "cut in the body": Fault(cut_after=300),
    "reset in the body": Fault(cut_after=300, reset=True),
    "503": STORM[0],
    "503 with Retry-After": STORM[1],
    "502": STORM[2],
    "overloaded": STORM[3],
}


@pytest.mark.parametrize("at", ["pair", "first", "last", "all"])
@pytest.mark.parametrize("name", FAULTS)
def test_row_50_each_fault_once_changes_nothing(
    open_client: Callable[..., Any], proxy: FaultProxy, direct: Scores, name: str, at: str
) -> None:
    fault, fine = FAULTS[name], Fault()
    proxy.faults = {
        "pair": [fault],
        "first": [fine, fault],
        "last": [fine] * N_REQUESTS + [fault],
        "all": [fault, fine] * N_REQUESTS,
    }[at]
    scores = score(open_client, proxy)
    assert isinstance(scores, Scores), scores
    assert_same(scores, direct)
    assert proxy.faults == [] or at == "all"
    if name != "late":
        assert proxy.attempts > 1 + N_REQUESTS


@pytest.mark.parametrize("seed", range(50))
def test_row_50_any_schedule_of_faults_ends_in_the_right_result_or_a_typed_error(
    open_client: Callable[..., Any], proxy: FaultProxy, direct: Scores, seed: int
) -> None:
    draw = random.Random(seed)
    share = draw.choice([0.1, 0.3, 0.6, 0.9])
    kinds = [
        *FAULTS.values(),
        *(Fault(cut_after=draw.randrange(1200), reset=draw.random() < 0.5) for _ in range(9)),
    ]
    proxy.faults = [draw.choice(kinds) if draw.random() < share else Fault() for _ in range(200)]
    outcome = score(open_client, proxy, deadline=draw.choice([None, 20]))
    if isinstance(outcome, Scores):
        assert_same(outcome, direct)
    else:
        assert isinstance(outcome, UnavailableError)
    if share <= 0.1:
        assert isinstance(outcome, Scores)


def test_a_storm_ends_in_its_own_error_within_the_budget(
    open_client: Callable[..., Any], proxy: FaultProxy
) -> None:
    proxy.faults = [Fault(), *[STORM[3]] * 1000]
    outcome = score(open_client, proxy)
    assert isinstance(outcome, UnavailableError)
    assert outcome.message == "full"


def test_a_storm_with_a_deadline_spends_the_budget(
    open_client: Callable[..., Any], proxy: FaultProxy
) -> None:
    proxy.faults = [Fault(), *STORM * 1000]
    outcome = score(open_client, proxy, deadline=60)
    assert isinstance(outcome, UnavailableError)
    assert "retry budget of 127.0.0.1" in outcome.message
    assert isinstance(outcome.__cause__, UnavailableError)


def test_an_answer_that_comes_too_late_is_the_deadlines(
    open_client: Callable[..., Any], proxy: FaultProxy
) -> None:
    proxy.faults = [Fault(), *[Fault(delay=30.0)] * 20]
    outcome = score(open_client, proxy, deadline=0.3)
    assert isinstance(outcome, DeadlineExceededError)


def test_an_iteration_survives_faults_too(
    open_client: Callable[..., Any], proxy: FaultProxy, direct: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densepath.client.core.BATCH_ITEMS", 5)
    draw = random.Random(0)
    proxy.faults = [draw.choice([Fault(), Fault(), *FAULTS.values()]) for _ in range(12)]
    with open_client(proxy.url) as client:
        scores = tuple(client.iter_score(ITEMS, include=["logprobs", "tokens"], deadline=20))
    assert_same(Scores(scores, direct.model_version, direct.usage), direct)
    assert proxy.faults == []


def test_what_one_replica_fails_at_the_other_answers_at_once(
    open_client: Callable[..., Any], served: Running, proxy: FaultProxy, direct: Scores
) -> None:
    proxy.faults = [STORM[0], *[Fault(lost=True, reset=True)] * 1000]
    with open_client(proxy.url, f"http://127.0.0.1:{served.port}") as client:
        scores = client.score(ITEMS, include=["logprobs", "tokens"])
    assert_same(scores, direct)
    assert 1 <= proxy.attempts <= N_REQUESTS  # some were its own, and it was soon passed over


@pytest.mark.timeout(300)
def test_row_26_a_service_that_is_killed_in_the_middle_is_replaced_by_the_other(
    open_client: Callable[..., Any],
    pair_dirs: tuple[Path, Path],
    served: Running,
    direct: Scores,
    tmp_path: Path,
) -> None:
    with killable(pair_dirs, tmp_path / "log") as (process, url):
        seen: list[int] = []

        def kill_in_the_middle(done: int, total: int) -> None:
            seen.append(done)
            if done and process.poll() is None:
                process.kill()
                process.wait()

        with open_client(url, f"http://127.0.0.1:{served.port}") as client:
            before = client.score(ITEMS, include=["logprobs", "tokens"])
            during = client.score(ITEMS, include=["logprobs", "tokens"], progress=kill_in_the_middle)
            after = client.score(ITEMS, include=["logprobs", "tokens"])
    for scores in (before, during, after):
        assert_same(scores, direct)
    assert seen[0] == 0
    assert seen[1] < len(ITEMS)
    assert process.returncode == -9


@contextmanager
def killable(pair_dirs: tuple[Path, Path], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service of the same pair in a process of its own."""
    sft, reference = pair_dirs
    options = ("--sft", sft, "--reference", reference, "--engine", "fake", "--max-items", "3")
    process, url = start(*options, log=log, port=free_port())
    try:
        wait_ready(process, url, log)
        yield process, url
    finally:
        process.kill()
        process.wait()


def test_the_proxy_counts_what_passes(proxy: FaultProxy) -> None:
    proxy.faults = [STORM[0]]
    with httpx.Client(base_url=proxy.url) as plain:
        assert [plain.get("/livez").status_code for _ in range(2)] == [503, 200]
    assert proxy.attempts == 2
