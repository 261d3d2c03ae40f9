"""A tiny pair whose policies other tools can train, and its service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from live import serving

#: So many that a random model ends some responses soon, and so few that others are cut.
EOS_IDS = [2, *range(150, 300, 5)]


def _policy(directory: Path, seed: int, rows: int) -> Path:
    """A random checkpoint with many EOS tokens; it samples the padded rows of its embedding too."""
    make_checkpoint(directory, seed=seed, vocab_size=rows)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(config | {"eos_token_id": EOS_IDS}))
    return directory


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SFT and reference: two tiny Llamas. Read only."""
    root = tmp_path_factory.mktemp("tiny")
    return _policy(root / "sft", seed=1, rows=320), _policy(root / "reference", seed=2, rows=384)


@pytest.fixture(scope="session")
def tiny_service(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service of that pair with the transformers engine: its numbers hang on no batch."""
    sft, reference = tiny_pair
    options = ("--sft", sft, "--reference", reference, "--engine", "transformers")
    log = tmp_path_factory.mktemp("tiny-service") / "log"
    with serving(*options, log=log, env={"OMP_NUM_THREADS": "1"}) as url:
        yield url
