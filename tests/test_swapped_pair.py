"""`PUT /admin/pair` with the real engine: other pairs under load, and pairs that fail at several stages."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
SWAPS = int(os.environ.get("DENSEPATH_TEST_ENGINE_SWAPS", "4"))
HEADERS = {"Authorization": "Bearer k3y-of-the-operator"}
PROMPT, RESPONSE = list(range(6, 90)), list(range(40, 77))
ITEM = {"prompt_token_ids": PROMPT, "response_token_ids": RESPONSE}
#: Directory → at which stage its pair fails, and a word of the reason.
BROKEN = {"no-pair": "config.json", "nan": "finite", "short": "--max-model-len", "deep": "KV cache"}


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
        return [child for child in self.process.children(recursive=True) if child.memory_info().rss > 200e6]


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


def test_swaps_under_load(root: Path, tmp_path: Path, say_difference: Callable[[str, float], None]) -> None:
    stop_asking = threading.Event()
    right: dict[str, tuple[Any, Any]] = {}  # version → both log-probabilities
    with swappable(root, tmp_path) as served, ThreadPoolExecutor(3) as threads:
        right[served.pair()["version"]] = expected(root, "one")
        other = expected(root, "two")
        unchecked: list[dict[str, Any]] = []

        def ask() -> int:
            count = 0
            with httpx.Client(timeout=60) as client:
                while not stop_asking.wait(0.05):
                    body = {"items": [ITEM] * 2, "include": ["logprobs"]}
                    answer = client.post(f"{served.url}/v1/rewards", json=body)
                    unchecked.append(answer.raise_for_status().json())
                    count += 1
            return count

        asking = [threads.submit(ask) for _ in range(3)]
        try:
            broken = cycle(BROKEN.items())
            for number in range(SWAPS):
                before = served.pair()
                if number % 3 == 1:
                    name, word = next(broken)
                    answer = served.put(name)
                    error = answer.json()["error"]
                    assert (answer.status_code, error["code"]) == (422, "invalid_pair"), answer.text
                    assert word in error["message"]
                    assert str(root) not in error["message"]
                    assert served.pair() == before
                else:
                    answer = served.put(name := "one" if number % 3 else "two")
                    assert answer.status_code == 200, (answer.text, served.log.read_text()[-4000:])
                    assert answer.json()["verified"]["verified"] is True
                    assert served.pair() == answer.json()
                    right.setdefault(answer.json()["version"], other)
        finally:
            stop_asking.set()
        asked = sum(each.result(timeout=60) for each in asking)
        assert asked == len(unchecked)
        largest = 0.0
        for answer_ in unchecked:
            for item in answer_["items"]:
                sft_T, reference_T = right[answer_["model_version"]]
                largest = max(
                    largest,
                    float(np.abs(item["sft_logprobs"] - sft_T).max()),
                    float(np.abs(item["reference_logprobs"] - reference_T).max()),
                )
        assert {each["model_version"] for each in unchecked} == set(right)
        say_difference(f"{SWAPS} swaps, {asked} answers under load", largest)
        assert largest <= TOLERANCE
        served_engines = served.engines()
        assert len(served_engines) == 1, "only the engine of the served pair is left"
        assert "Traceback" not in served.log.read_text()


def test_a_shutdown_during_a_swap(root: Path, tmp_path: Path) -> None:
    with swappable(root, tmp_path) as served, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(served.put, "two")
        before = len(served.process.children(recursive=True))
        while len(served.process.children(recursive=True)) == before and not asked.done():
            pass
    assert asked.result(timeout=60).status_code == 503
