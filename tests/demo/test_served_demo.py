"""What a newcomer sees: `densepath serve --demo` from nothing, with the real engine."""

from __future__ import annotations

import json
import random
from pathlib import Path

import httpx
import pytest

from densepath.demo.task import Example, corrupt, held_out
from live import serving

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


def test_the_demo_is_built_served_and_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    rng = random.Random(0)
    right = held_out(120, rng)
    wrong = [
        (Example(e.messages, response), at) for e in right for response, at in [corrupt(e.response, rng)]
    ]
    with serving("--demo", log=log, env={"XDG_CACHE_HOME": str(tmp_path)}, within=1000) as url:
        items = [
            {"messages": list(example.messages), "response": example.response, "append_eos": True}
            for example in (*right, *(example for example, _ in wrong))
        ]
        answer = httpx.post(f"{url}/v1/rewards", json={"items": items, "include": ["tokens"]}, timeout=60)
    found = answer.json()["items"]
    of_right, of_wrong = found[: len(right)], found[len(right) :]
    assert of_right[0]["tokens"] == [*right[0].response, "<|end|>"]
    # A model trained on another processor has other bits, and may be wrong on any one word; not on most.
    above = sum(r["sum"] > w["sum"] for r, w in zip(of_right, of_wrong, strict=True))
    assert above > 0.75 * len(right), "the sum falls with a wrong letter"
    falls = [
        r["rewards"][at] - w["rewards"][at] for r, w, (_, at) in zip(of_right, of_wrong, wrong, strict=True)
    ]
    assert sum(fall > 0 for fall in falls) > 0.75 * len(falls), "it falls at the wrong letter"
    assert sum(falls) / len(falls) > 0.3

    printed = log.read_text()
    assert "The rewards of a right answer and of one with a wrong letter" in printed
    assert "Which token is the wrong one?" in printed
    (manifest,) = tmp_path.glob("densepath/demo-*/manifest.json")
    wrong_token = json.loads(manifest.read_text())["measurements"]["wrong_token"]
    assert wrong_token["r_t, reference-base"]["auroc"] > 0.8, "far better than chance"
