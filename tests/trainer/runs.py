"""A made-up run directory of `densepath train`: a real one's files and fields, figures from a formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

PAIR = {
    "object": "pair",
    "model": "default",
    "version": "0123456789abcdef",
    "sources": {"sft": "final", "reference": "base"},
    "dtype": "float32",
    "vocab_size": 43,
    "context_length": 64,
    "tokenizer_fingerprint": "tokens",
    "chat_template_fingerprint": None,
    "eos_token_ids": [1],
    "limits": {"max_items": 64, "max_body_bytes": 1 << 20, "max_queued_tokens": 4096},
}
MANIFEST: dict[str, Any] = {
    "kind": "train",
    "densepath": "0.1.0",
    "packages": {"torch": "2.13.0", "transformers": "5.19.0"},
    "settings": {
        "sft": "run/final",
        "steps": 40,
        "learning_rate": 1e-4,
        "kl_coefficient": 0.5,
        "shaping": {"clip": None, "centre": False},
        "api_key": "s3cret",
    },
    "pair": PAIR,
    "created": "2026-11-25T10:00:00+00:00",
    "stopped": {"step": 40, "why": "all 40 steps are done"},
}


def make_row(step: int, *, held_out: bool = True) -> dict[str, Any]:
    """The line of `metrics.jsonl` for a step, without its end."""
    chance = np.random.default_rng(step)
    reward, kl = 2 * (1 - np.exp(-step / 15)) + 0.1 * chance.normal(), 0.02 * step
    seconds = {"rollout": 0.9, "rewards": 0.12, "forward_backward": 0.45, "weight_update": 0.05}
    seconds = {name: value * (1 + 0.1 * chance.random()) for name, value in seconds.items()}
    row = {
        "step": step,
        "reward": reward,
        "reward_token": reward / 7,
        "kl": kl,
        "objective": reward - 0.5 * kl,
        "length": 7 + 0.3 * chance.normal(),
        "truncated": int(chance.integers(0, 5)),
        "responses": 64,
        "entropy": 0.9 * np.exp(-step / 60),
        "grad_norm": 1 + 0.2 * chance.random(),
        "loss": -0.1,
        "lr": 1e-4,
        "logp_gap": 1e-6,
        "seconds": {**seconds, "total": sum(seconds.values()) + 0.02},
    }
    if held_out and (step == 1 or step % 10 == 0):
        row["held_out"] = {"greedy": 0.55 + step / 400}
    return row


def make_sample(step: int, index: int, *, token: str | None = None) -> dict[str, Any]:
    """A line of `samples.jsonl`; longer responses have larger sums."""
    chance = np.random.default_rng((step, index))
    letters = [*(chr(97 + int(letter)) for letter in chance.integers(0, 26, 2 + index % 7)), " \n", "<eos>"]
    rewards = (0.3 + chance.normal(size=len(letters))).tolist()
    if token is not None:
        letters[0] = token
    return {
        "step": step,
        "prompt": f"reverse: planet {index}",
        "tokens": letters,
        "rewards": rewards,
        "sum": sum(rewards),
        "ended": index % 5 != 0,
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(
    directory: Path,
    *,
    steps: int = 40,
    held_out: bool = True,
    samples: int = 16,
    token: str | None = None,
    **manifest: Any,
) -> Path:
    """A run of `steps` steps; with 0 `samples` it kept none. `manifest` changes what manifest.json says."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").write_text(json.dumps(MANIFEST | manifest), encoding="utf-8")
    write_lines(
        directory / "metrics.jsonl", [make_row(step, held_out=held_out) for step in range(1, steps + 1)]
    )
    if samples:
        write_lines(
            directory / "samples.jsonl",
            [
                make_sample(step, index, token=token)
                for step in range(1, steps + 1)
                for index in range(samples)
            ],
        )
    return directory
