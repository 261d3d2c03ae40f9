"""`PUT /admin/pair` with the real engine: other pairs under load, and pairs that fail at several stages."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from checkpoints import make_checkpoint
from damage import edit, set_values
from densepath.engine.transformers import TransformersScorer
from densepath.sequences import from_response
from live import start, stop, wait_ready

pytestmark = pytest.mark.engine

TOLERANCE = 2e-5
#: Set it to 50 for a long run by hand.
SWAPS = int(os.environ.get("DENSEPATH_TEST_ENGINE_SWAPS", "2"))
HEADERS = {"Authorization": "Bearer k3y-of-the-operator"}
PROMPT, RESPONSE = list(range(6, 90)), list(range(40, 77))
ITEM = {"prompt_token_ids": PROMPT, "response_token_ids": RESPONSE}
#: Directory → at which stage its pair fails, and a word of the reason.
BROKEN = {"deep": "KV cache", "no-pair": "config.json", "nan": "finite", "short": "--max-model-len"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of other sizes, and those that cannot be served."""
    root = tmp_path_factory.mktemp("root")
    make_checkpoint(root / "one" / "sft", seed=1)
    make_checkpoint(root / "one" / "reference", seed=2)
    make_checkpoint(root / "two" / "sft", "qwen3", seed=3, layers=3)
    make_checkpoint(root / "two" / "reference", "qwen3", seed=4)
    (root / "no-pair" / "sft").mkdir(parents=True)
    (root / "no-pair" / "reference").mkdir()
    for name, layers in (("nan", 2), ("short", 2), ("deep", 24)):
        for side, seed in (("sft", 5), ("reference", 6)):
            make_checkpoint(root / name / side, seed=seed, layers=layers)
    set_values("model.norm.weight", float("nan"), 1)(root / "nan" / "reference")
    for side in ("sft", "reference"):
        edit("config.json", max_position_embeddings=128)(root / "short" / side)
    return root


def directories(name: str) -> dict[str, str]:
    return {"sft": f"{name}/sft", "reference": f"{name}/reference"}


def expected(root: Path, name: str) -> tuple[Any, Any]:
    """Both log-probabilities by transformers."""

    async def score() -> tuple[Any, Any]:
        scorer = TransformersScorer(root / name / "sft", root / name / "reference", context_length=256)
        await scorer.start()
        scored = await scorer.score(from_response(PROMPT, RESPONSE))
        await scorer.close()
        return scored.logp_sft_T, scored.logp_reference_T

    return asyncio.run(score())


@dataclass
class Swapped:
    """A service whose pair is swapped."""

    url: str
    process: psutil.Process
    log: Path

    def put(self, name: str) -> httpx.Response:
        return httpx.put(f"{self.url}/admin/pair", json=directories(name), headers=HEADERS, timeout=240)

    def pair(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/pair").json()
        return found

    def engines(self) -> list[psutil.Process]:
        """The processes of all engines, by the names that vLLM gives them."""
        found = []
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if child.name().startswith("VLLM"):
                    found.append(child)
        return found


@contextmanager
def swappable(root: Path, folder: Path) -> Iterator[Swapped]:
    keys, log = folder / "keys", folder / "log"
    keys.write_text("k3y-of-the-operator\n")
    process, url = start(
        *("--sft", root / "one" / "sft", "--reference", root / "one" / "reference"),
        *("--pair-root", root, "--admin-key-file", keys, "--drain-seconds", "10"),
        *("--max-model-len", "256", "--kv-cache-memory-bytes", str(2 << 20)),
        log=log,
    )
    try:
        wait_ready(process, url, log)
        yield Swapped(url, psutil.Process(process.pid), log)
        children = psutil.Process(process.pid).children(recursive=True)
        assert stop(process) == 0, log.read_text()[-4000:]
        _, orphans = psutil.wait_procs(children, timeout=30)
        assert not orphans
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between two looks at the condition


def refused(served: Swapped, name: str, root: Path) -> None:
    before = served.pair()
    answer = served.put(name)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "invalid_pair"), answer.text
    assert BROKEN[name] in error["message"]
    assert str(root) not in error["message"]
    assert served.pair() == before


def swaps_under_load(served: Swapped, root: Path, say_difference: Callable[[str, float], None]) -> None:
    """Every third swap is to a broken pair. Every answer has the numbers of its version."""
    stop_asking = threading.Event()
    answers: list[dict[str, Any]] = []
    right = {served.pair()["version"]: expected(root, "one")}  # version → both log-probabilities
    other = expected(root, "two")

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop_asking.wait(0.05):
                body = {"items": [ITEM] * 2, "include": ["logprobs"]}
                answer = client.post(f"{served.url}/v1/rewards", json=body)
                answers.append(answer.raise_for_status().json())

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        try:
            broken = cycle(BROKEN)
            for number in range(SWAPS):
                if number % 3 == 1:
                    refused(served, next(broken), root)
                    continue
                answer = served.put("one" if number % 3 else "two")
                assert answer.status_code == 200, (answer.text, served.log.read_text()[-4000:])
                assert answer.json()["verified"]["verified"] is True
                assert served.pair() == answer.json()
                right.setdefault(answer.json()["version"], other)
        finally:
            stop_asking.set()
        for each in asking:
            each.result(timeout=60)
    largest = 0.0
    for found in answers:
        for item in found["items"]:
            sft_T, reference_T = right[found["model_version"]]
            largest = max(largest, float(np.abs(item["sft_logprobs"] - sft_T).max()))
            largest = max(largest, float(np.abs(item["reference_logprobs"] - reference_T).max()))
    assert {each["model_version"] for each in answers} == set(right)
    say_difference(f"{SWAPS} swaps, {len(answers)} answers under load", largest)
    assert largest <= TOLERANCE


def test_rows_31_46_swaps_then_a_shutdown(
    root: Path, tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    with ThreadPoolExecutor(1) as threads:
        with swappable(root, tmp_path) as served:
            of_one = len(served.engines())
            assert of_one
            swaps_under_load(served, root, say_difference)
            for name in BROKEN:
                if name != "deep":  # its engine has to start, and under load it was refused
                    refused(served, name, root)
            until(lambda: len(served.engines()) == of_one)  # that of the served pair
            served.process.send_signal(signal.SIGHUP)
            until(lambda: "keys_reloaded" in served.log.read_text())
            assert "Traceback" not in served.log.read_text()
            asked = threads.submit(served.put, "one")
            until(lambda: len(served.engines()) > of_one)
        assert asked.result(timeout=60).status_code == 503
