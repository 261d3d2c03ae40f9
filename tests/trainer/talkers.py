"""Tiny checkpoints that end their responses soon, and prompts for them."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import make_checkpoint

#: A random model draws one of these every other token; the tokenizer's own EOS is one of them.
EOS_IDS = [2, *range(150, 300)]
PROMPTS = ["two", "two and three", "What is the capital of France?", "a reward for every token", "the sum is"]


def make_talker(directory: Path, seed: int) -> Path:
    """A random checkpoint with many EOS tokens."""
    make_checkpoint(directory, seed=seed)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(config | {"eos_token_id": EOS_IDS}))
    return directory


def write_prompts(path: Path, answers: list[str] | None = None, count: int = len(PROMPTS)) -> Path:
    """`count` prompts, of several lengths, with `answers` where they are given."""
    rows = [{"prompt": f"{PROMPTS[n % len(PROMPTS)]} {n}", "id": str(n)} for n in range(count)]
    for row, answer in zip(rows, answers or (), strict=False):
        row["answer"] = answer
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
