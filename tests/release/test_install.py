"""The wheel in a fresh environment: as a client alone, and with its engine as a service."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from densepath import Client
from live import Demo, finish, serving
from release.conftest import Dist, Environment

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

TOLERANCE = 1e-5
ITEMS = [
    {"prompt_token_ids": [1, 90, 74], "response_token_ids": [89, 74, 83, 2]},
    {"messages": [{"role": "user", "content": "reverse: planet"}], "response": "tenxlp", "append_eos": True},
    {"prompt": "upper: ", "response": "WORD"},
]
#: Says what is there of what only the engine needs.
LOOK = (
    "from importlib.util import find_spec; import densepath; densepath.Client, densepath.AsyncClient;"
    "print([name for name in ('torch', 'vllm', 'fastapi', 'transformers') if find_spec(name)])"
)
#: Nothing of this checkout is on the path of a fresh environment.
ALONE = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def rewards(demo: Demo) -> list[np.ndarray]:
    """What the service of this checkout answers."""
    with Client(demo.url) as client:
        return [score.reward_T for score in client.score(ITEMS)]


def test_the_base_install_is_a_client(
    fresh: Environment, dist: Dist, demo: Demo, rewards: list[np.ndarray], tmp_path: Path
) -> None:
    fresh.uv("install", "--constraints", fresh.lock, dist.wheel)

    def densepath(*words: str | Path, status: int = 0) -> str:
        done = finish(
            ["env", "-C", str(tmp_path), str(fresh.densepath), *map(str, words)], env=ALONE, within=120
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert densepath("--version").strip() == dist.wheel.name.split("-")[1]
    assert "--url" in densepath("score", "--help")
    assert finish([str(fresh.python), "-c", LOOK], env=ALONE, within=60).stdout.strip() == "[]"
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    densepath("score", "items.jsonl", "-o", "out.jsonl", "--url", demo.url)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for line, reward_T in zip(lines, rewards, strict=True):
        np.testing.assert_allclose(line["rewards"], reward_T, rtol=0, atol=TOLERANCE)
    assert "densepath[cpu,train]" in densepath("serve", "--demo", "--port", "0", status=2)


def share_bytecode(fresh: Environment) -> None:
    """Link the bytecode of the same packages, which .venv has: compiling it anew takes most of a minute.

    Python takes a file of it only where its source has the same time and size.
    """
    site, of_fresh = (
        next((environment / "lib").glob("python*/site-packages"))
        for environment in (Path(sys.prefix), fresh.directory)
    )
    for cache in site.rglob("__pycache__"):
        target = of_fresh / cache.relative_to(site)
        if target.parent.is_dir() and not target.exists():
            target.mkdir()
            for file in cache.iterdir():
                os.link(file, target / file.name)


@pytest.fixture
def served(fresh: Environment, dist: Dist, demo: Demo, tmp_path: Path) -> Iterator[str]:
    """`densepath serve --demo` of the wheel with its engine; the demo pair is there already."""
    fresh.uv("sync", fresh.lock)
    share_bytecode(fresh)
    fresh.uv("install", "--no-deps", dist.wheel)
    env = {**ALONE, "XDG_CACHE_HOME": str(demo.sft.parents[2])}
    with serving("--demo", log=tmp_path / "log", env=env, python=fresh.python) as url:
        yield url


def test_with_its_engine_it_serves_the_demo(
    served: str,
    dist: Dist,
    demo: Demo,
    rewards: list[np.ndarray],
    say_difference: Callable[[str, float], None],
) -> None:
    def version(url: str) -> Any:
        return httpx.get(f"{url}/version").json()

    assert version(served) == version(demo.url)
    assert version(served)["version"] == dist.wheel.name.split("-")[1]
    with Client(served) as client:
        scores = client.score(ITEMS)
    difference = max(
        float(np.abs(score.reward_T - reward_T).max())
        for score, reward_T in zip(scores, rewards, strict=True)
    )
    say_difference("the wheel in a fresh environment against this checkout", difference)
    assert difference <= TOLERANCE
    page = httpx.get(f"{served}/")
    assert page.status_code == 200
    assert "densepath" in page.text
