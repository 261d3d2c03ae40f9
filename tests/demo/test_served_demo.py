"""What a newcomer sees: `densepath serve --demo` from nothing, with the real engine."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from live import serving

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

PROMPT = [{"role": "user", "content": "reverse: planet"}]


def test_the_demo_is_built_served_and_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving("--demo", log=log, env={"XDG_CACHE_HOME": str(tmp_path)}, within=1000) as url:
        items = [
            {"messages": PROMPT, "response": response, "append_eos": True}
            for response in ("tenalp", "tenxlp")
        ]
        answer = httpx.post(f"{url}/v1/rewards", json={"items": items, "include": ["tokens"]}, timeout=60)
    right, wrong = answer.json()["items"]
    assert wrong["tokens"] == ["t", "e", "n", "x", "l", "p", "<|end|>"]
    assert right["sum"] > wrong["sum"]
    assert min(wrong["rewards"]) == wrong["rewards"][3] < 0 < right["rewards"][3], (
        "it falls at the wrong letter"
    )

    printed = log.read_text()
    assert "The rewards of a right answer and of one with a wrong letter" in printed
    assert "Which token is the wrong one?" in printed
    (manifest,) = tmp_path.glob("densepath/demo-*/manifest.json")
    wrong_token = json.loads(manifest.read_text())["measurements"]["wrong_token"]
    assert wrong_token["r_t, reference-base"]["auroc"] > 0.8, "far better than chance"
