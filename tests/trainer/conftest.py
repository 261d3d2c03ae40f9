"""A pair whose models end their responses, and prompts for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from live import serving
from trainer.talkers import make_talker


@pytest.fixture(scope="session")
def ending_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny Llamas with many EOS ids. Read only."""
    root = tmp_path_factory.mktemp("ending")
    return make_talker(root / "sft", seed=1), make_talker(root / "reference", seed=2)


@pytest.fixture(scope="session")
def service_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "log"


@pytest.fixture(scope="session")
def service(ending_pair: tuple[Path, Path], service_log: Path) -> Iterator[str]:
    """The URL of a service of that pair with the transformers engine: its numbers hang on no batch."""
    sft, reference = ending_pair
    options = ("--sft", sft, "--reference", reference, "--engine", "transformers")
    with serving(*options, log=service_log, env={"OMP_NUM_THREADS": "1"}) as url:
        yield url


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": f"the sum of {n} and {n % 7} is", "answer": str(n + n % 7)} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
