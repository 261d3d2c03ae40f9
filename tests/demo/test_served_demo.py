"""What a newcomer sees: `densepath serve --demo` from nothing, with the real engine."""

from __future__ import annotations

import json
import random

import httpx
import pytest

from densepath.demo.task import Example, corrupt, held_out
from live import Demo

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


def test_the_demo_is_built_served_and_shown(demo: Demo) -> None:
    rng = random.Random(0)
    right = held_out(120, rng)
    wrong = [
        (Example(e.messages, response), at) for e in right for response, at in [corrupt(e.response, rng)]
    ]
    items = [
        {"messages": list(example.messages), "response": example.response, "append_eos": True}
        for example in (*right, *(example for example, _ in wrong))
    ]
    answer = httpx.post(f"{demo.url}/v1/rewards", json={"items": items, "include": ["tokens"]}, timeout=60)
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

    printed = demo.log.read_text()
    assert f"Look at rewards in a browser: {demo.url}/" in printed
    assert "The rewards of a right answer and of one with a wrong letter" in printed
    assert "Which token is the wrong one?" in printed
    wrong_token = json.loads((demo.sft.parent / "manifest.json").read_text())["measurements"]["wrong_token"]
    assert wrong_token["r_t, reference-base"]["auroc"] > 0.8, "far better than chance"
