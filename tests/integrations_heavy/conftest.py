"""A real service for the tools of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from live import serving


@pytest.fixture(scope="session")
def service(pair_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a tiny pair's service with the transformers engine: its numbers hang on no batch."""
    sft, reference = pair_dirs
    options = ("--sft", sft, "--reference", reference, "--engine", "transformers", "--teacher-kl", "0.25")
    log = tmp_path_factory.mktemp("service") / "log"
    with serving(*options, log=log, env={"OMP_NUM_THREADS": "1"}) as url:
        yield url
