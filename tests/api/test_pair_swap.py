"""PUT /admin/pair: under load, with pairs that fail at every stage, and with paths that lead elsewhere."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api.running import CONTEXT_LENGTH, Running, expected, make_service, running
from densepath import sequences
from densepath.api.served import Served
from densepath.api.swap import Swapping, allowed_directory
from densepath.engine.fake import FakeScorer
from densepath.engine.scorer import Scored, Scorer, View, engine_lost
from densepath.errors import EngineStartError, InvalidPairError
from densepath.pair.pair import Pair
from densepath.sequences import Sequence
from densepath.verification.start import Start, start_unverified
from densepath.verification.verdict import Verdict

ADMIN = "k3y-of-the-operator"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}
#: Set it to 50 or more for a long run by hand.
SWAPS = int(os.environ.get("DENSEPATH_TEST_SWAPS", "12"))
PROMPT, RESPONSE = [3, 4, 5], [6, 7, 8, 9]
#: Directory under the root → what its pair fails with, beside those that are served.
FAULTS = ("check", "tokenizer", "engine", "memory", "verify", "changed")
GOOD = ("one", "two")


class PairScorer(FakeScorer):
    """The fake engine of one pair: its log-probabilities of the sft are `below` nats lower."""

    def __init__(self, below: float, open_engines: set[Scorer]) -> None:
        super().__init__(CONTEXT_LENGTH)
        self.below, self.open_engines, self.closed = below, open_engines, False

    async def start(self) -> None:
        self.open_engines.add(self)

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        await asyncio.sleep(0.002)  # requests are in the engine when the pair changes
        scored = await super().score(sequence, view, cold=cold)
        if self.closed:
            raise engine_lost()
        scored.logp_sft_T[:] -= self.below
        return scored

    async def close(self) -> None:
        self.closed = True
        self.open_engines.discard(self)

    __hash__ = object.__hash__  # type: ignore[assignment]  # a dataclass that is compared has none


@dataclass
class Pairs:
    """What can be swapped to."""

    root: Path
    pair: Pair
    first: Served
    below: dict[str, float] = field(default_factory=dict)  # version → nats
    open_engines: set[Scorer] = field(default_factory=set)
    loading: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def prepare(
        self, sft: Path, reference: Path, progress: Callable[[int, int], None]
    ) -> tuple[Served, Start]:
        fault = sft.name
        if fault == "slow":
            self.loading.set()
            while not self.go_on.wait(0.01):
                progress(1, 2)
        if fault == "check":
            raise InvalidPairError(f"not a pair: sft: config.json: is missing in {sft}/config.json")
        if fault == "tokenizer":
            raise RuntimeError("a fault that nobody expects")
        version = f"version-of-{fault}"
        pair = replace(self.pair, version=version)
        if fault == "changed":
            pair = replace(pair, files=({}, {}))  # as if every file were new
        below = self.below.setdefault(version, 1.0 + len(self.below))
        scorer = PairScorer(below, self.open_engines)
        return replace(self.first, pair=pair, scorer=scorer), self.start_of(fault)

    @staticmethod
    def start_of(fault: str) -> Start:
        async def start(scorer: Scorer, *_: Any) -> Verdict:
            if fault in ("engine", "memory"):
                raise EngineStartError(f"the engine cannot start: {fault}")
            await scorer.start()
            if fault == "verify":
                raise InvalidPairError("the engine does not compute the sft as transformers does")
            if fault == "hangs":
                await asyncio.Event().wait()
            return await start_unverified("it was not asked for")(FakeScorer())

        return start


@contextmanager
def swappable(
    pair: Pair, root: Path, *, drain_seconds: float = 30.0, below: float = 0.0
) -> Iterator[tuple[Running, Pairs]]:
    root.mkdir()
    for name in (*GOOD, *FAULTS, "slow", "hangs"):
        (root / name).mkdir()
    engines: set[Scorer] = set()
    service = make_service(pair, scorer=PairScorer(below, engines))
    pairs = Pairs(root, pair, service.lifecycle.served, {pair.version: below}, engines)
    swapping = Swapping(root, pairs.prepare, drain_seconds)
    with running(service, admin_keys=(ADMIN,), swapping=swapping) as served:
        yield served, pairs


def swap(served: Running, name: str, reference: str | None = None) -> httpx.Response:
    body = {"sft": name, "reference": reference or name}
    return served.client.put("/admin/pair", json=body, headers=HEADERS)


def one_engine(served: Running, pairs: Pairs) -> None:
    served.until(lambda: len(pairs.open_engines) == 1)
    assert served.service.lifecycle.served.scorer in pairs.open_engines


def checked_rewards(client: httpx.Client, below: dict[str, float]) -> str:
    body = {
        "items": [{"prompt_token_ids": PROMPT, "response_token_ids": RESPONSE}] * 3,
        "include": ["logprobs"],
    }
    answer = client.post("/v1/rewards", json=body).raise_for_status().json()
    sft_T, reference_T = expected(sequences.from_response(PROMPT, RESPONSE))
    version: str = answer["model_version"]
    for item in answer["items"]:
        np.testing.assert_allclose(item["sft_logprobs"], sft_T - np.float32(below[version]), rtol=1e-6)
        np.testing.assert_allclose(item["reference_logprobs"], reference_T, rtol=1e-6)
        np.testing.assert_allclose(
            item["rewards"], sft_T - np.float32(below[version]) - reference_T, rtol=1e-5
        )
    return version


def checked_completion(client: httpx.Client, below: dict[str, float]) -> str:
    body = {"model": "reference", "prompt": PROMPT, "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = client.post("/v1/completions", json=body).raise_for_status().json()
    reference_T = expected(sequences.from_response(PROMPT[:1], PROMPT[1:]))[1]
    np.testing.assert_allclose(answer["choices"][0]["logprobs"]["token_logprobs"][1:], reference_T, rtol=1e-6)
    version: str = answer["system_fingerprint"]
    assert version in below
    return version


def test_row_46_swaps_under_load(pair: Pair, tmp_path: Path) -> None:
    """A third of the swaps fail, each at another stage. Every answer's numbers are those of its version."""
    stop = threading.Event()
    with swappable(pair, tmp_path / "pairs") as (served, pairs), ThreadPoolExecutor(6) as threads:

        def ask(check: Callable[[httpx.Client, dict[str, float]], str]) -> set[str]:
            seen = set()
            with httpx.Client(base_url=served.client.base_url, timeout=30) as client:
                while not stop.is_set():
                    seen.add(check(client, pairs.below))
            return seen

        asking = [threads.submit(ask, check) for check in (checked_rewards,) * 4 + (checked_completion,) * 2]
        try:
            for number in range(SWAPS):
                before = served.pair.version
                if number % 3 == 2:
                    fault = FAULTS[number // 3 % len(FAULTS)]
                    answer = swap(served, fault)
                    assert answer.status_code == (500 if fault == "tokenizer" else 422)
                    assert served.pair.version == before
                else:
                    name = GOOD[number % 3]
                    answer = swap(served, name)
                    assert (answer.status_code, answer.json()["version"]) == (200, f"version-of-{name}")
                    assert served.pair.version == f"version-of-{name}"
                assert served.client.get("/v1/pair").json()["version"] == served.pair.version
        finally:
            stop.set()
        seen = set().union(*(each.result(timeout=30) for each in asking))
        assert seen == {f"version-of-{name}" for name in GOOD} or seen == set(pairs.below)
        one_engine(served, pairs)
        served.idle()
        failed = SWAPS // 3
        counts = {
            result: served.metric("densepath_pair_swaps_total", result=result)
            for result in ("success", "refused", "failed", "cancelled")
        }
        assert counts["success"] == SWAPS - failed
        assert counts["refused"] + counts["failed"] == failed
        assert counts["cancelled"] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_row_31_a_pair_that_fails_leaves_the_old_one(
    fault: str, pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with swappable(pair, tmp_path / "pairs") as (served, pairs):
        answer = swap(served, fault)
        error = answer.json()["error"]
        if fault == "tokenizer":
            assert (answer.status_code, error["code"]) == (500, "internal_error")
        else:
            assert (answer.status_code, error["code"]) == (422, "invalid_pair")
            assert error["message"].endswith("; the pair that was served still is")
        assert str(tmp_path) not in answer.text
        assert checked_rewards(served.client, pairs.below) == pair.version
        one_engine(served, pairs)
        assert served.client.get("/readyz").status_code == 200
        assert served.metric("densepath_pair_info", model="default", version=pair.version, verified="no") == 1
    lines = capfd.readouterr()
    written = lines.out + lines.err
    assert written.count("] swap_begins") == written.count("] swap_ends") == 1


def test_what_shows_the_pair_follows_it(pair: Pair, tmp_path: Path) -> None:
    with swappable(pair, tmp_path / "pairs") as (served, pairs):
        served.client.get("/openapi.json").raise_for_status()
        assert swap(served, str(tmp_path / "pairs" / "one"), "two").status_code == 200
        version = "version-of-one"
        assert served.client.get("/v1/pair").json()["version"] == version
        assert served.client.get("/version").json()["model_version"] == version
        text = served.client.get("/metrics").text
        assert f'densepath_pair_info{{model="default",verified="no",version="{version}"}} 1.0' in text
        assert pair.version not in text
        assert 'densepath_pair_swaps_total{result="success"} 1.0' in text
        one_engine(served, pairs)
        pinned = {
            "items": [{"prompt_token_ids": PROMPT, "response_token_ids": RESPONSE}],
            "model_version": pair.version,
        }
        answer = served.client.post("/v1/rewards", json=pinned)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_version_mismatch")


def test_row_32_a_second_swap_is_told_so(pair: Pair, tmp_path: Path) -> None:
    with swappable(pair, tmp_path / "pairs") as (served, pairs), ThreadPoolExecutor(1) as threads:
        slow = threads.submit(swap, served, "slow")
        assert pairs.loading.wait(20)
        answer = swap(served, "one")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "swap_in_progress")
        assert checked_rewards(served.client, pairs.below) == pair.version
        pairs.go_on.set()
        assert slow.result(timeout=20).json()["version"] == "version-of-slow"
        assert swap(served, "one").status_code == 200


@pytest.mark.parametrize("stage", ["slow", "hangs"])
@pytest.mark.parametrize("why", ["hangs up", "deadline", "drain"])
def test_a_swap_that_is_not_wanted_any_more(stage: str, why: str, pair: Pair, tmp_path: Path) -> None:
    from densepath.api.lifecycle import Phase

    with swappable(pair, tmp_path / "pairs") as (served, pairs), ThreadPoolExecutor(1) as threads:
        body = {"sft": stage, "reference": stage}
        headers = {**HEADERS, **({"X-Request-Timeout": "0.5"} if why == "deadline" else {})}
        timeout = 0.5 if why == "hangs up" else 30

        def ask() -> int:
            try:
                with httpx.Client(base_url=served.client.base_url, timeout=timeout) as client:
                    return client.put("/admin/pair", json=body, headers=headers).status_code
            except httpx.TimeoutException:
                return 0

        asked = threads.submit(ask)
        if why == "drain":
            if stage == "slow":
                assert pairs.loading.wait(20)
            else:
                served.until(lambda: len(pairs.open_engines) == 2)
            served.now(lambda: served.service.lifecycle.enter(Phase.DRAINING))
        assert asked.result(timeout=20) == {"hangs up": 0, "deadline": 504, "drain": 503}[why]
        served.idle()
        one_engine(served, pairs)
        assert served.pair.version == pair.version
        assert served.metric("densepath_pair_swaps_total", result="cancelled") == 1
        if why != "drain":
            assert swap(served, "one").status_code == 200


def test_the_old_engine_waits_for_its_requests_but_not_for_ever(pair: Pair, tmp_path: Path) -> None:
    with (
        swappable(pair, tmp_path / "pairs", drain_seconds=0.2) as (served, pairs),
        ThreadPoolExecutor(1) as threads,
    ):
        old = served.scorer
        assert isinstance(old, PairScorer)
        served.now(lambda: setattr(old, "gate", gate := asyncio.Event()) or gate)
        late = threads.submit(
            served.client.post,
            "/v1/rewards",
            json={"items": [{"prompt_token_ids": PROMPT, "response_token_ids": RESPONSE}]},
        )
        served.until(old.started.is_set)
        assert swap(served, "one").status_code == 200
        assert checked_rewards(served.client, pairs.below) == "version-of-one"
        served.until(lambda: old.closed)
        served.now(lambda: old.gate and old.gate.set())
        answer = late.result(timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")


def test_a_second_engine_needs_room_in_main_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from densepath.commands.engines import require_room

    monkeypatch.setattr("densepath.engine.vllm.environment.cpu_build", lambda: True)
    scorer = FakeScorer()
    scorer.arguments = {"kv_cache_memory_bytes": 3 << 30}  # type: ignore[attr-defined]
    for free, fits in ((5 << 30, True), (4 << 30, False)):
        monkeypatch.setattr("densepath.verification.oracle.free_memory", lambda free=free: free)
        if fits:
            require_room(pair, scorer)
            continue
        with pytest.raises(InvalidPairError, match=r"about 4\.0 GiB of memory, and 4\.0 GiB are free"):
            require_room(pair, scorer)


def test_without_a_root_there_is_no_swap(pair: Pair) -> None:
    with running(make_service(pair), admin_keys=(ADMIN,)) as served:
        answer = swap(served, "one")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_pair")
        assert "--pair-root" in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("top")
    for name in ("root/pair", "root/half", "root/deep/templates", "outside", "root-too"):
        (top / name).mkdir(parents=True)
    (top / "outside" / "config.json").write_text("{}")
    (top / "root" / "file").write_text("")
    (top / "root" / "out").symlink_to(top / "outside")
    (top / "root" / "loop").symlink_to(top / "root" / "loop")
    (top / "root" / "in").symlink_to("pair")
    (top / "root" / "deep" / "templates" / "a.jinja").symlink_to(top / "outside" / "config.json")
    (top / "root" / "half" / "config.json").symlink_to(top / "outside" / "config.json")
    return top


@pytest.mark.parametrize(
    "text",
    [
        "../outside",
        "pair/../../outside",
        "{top}/outside",
        "{top}/root-too",
        "{top}/root/../outside",
        "/",
        "/etc",
        "~",
        "out",
        "out/.",
        "loop",
        "half",
        "deep",
        "file",
        "missing",
        "pair\x00",
        "\x00",
        "x" * 5000,
        "x/" * 5000,
        "%2e%2e/outside",
        "..%2foutside",
        "pair%00",
        "file://{top}/root/pair",
        "https://example.org/pair",
        "org/name@main",
        "\\..\\outside",
        "..\\outside",
    ],
)
def test_row_35_a_path_that_leads_elsewhere_is_refused(text: str, elsewhere: Path) -> None:
    with pytest.raises(InvalidPairError) as refused:
        allowed_directory("sft", text.replace("{top}", str(elsewhere)), elsewhere / "root")
    assert str(elsewhere) not in refused.value.message
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("text", ["pair", "./pair/", "in", "{top}/root/pair", "half/../pair"])
def test_a_path_under_the_root_is_taken(text: str, elsewhere: Path) -> None:
    found = allowed_directory("sft", text.replace("{top}", str(elsewhere)), elsewhere / "root")
    assert found == (elsewhere / "root" / "pair").resolve()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"sft": "one"}', b'{"sft": 1, "reference": "two"}', b'{"sft": "a", "sft": "b"}'],
)
def test_a_body_that_is_none(body: bytes, pair: Pair, tmp_path: Path) -> None:
    with swappable(pair, tmp_path / "pairs") as (served, _):
        answer = served.client.put(
            "/admin/pair", content=body, headers={**HEADERS, "Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["code"] in ("malformed_body", "invalid_request")
