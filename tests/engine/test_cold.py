"""A cold request reads nothing from the prefix cache, and scores the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_vllm_pair import TOLERANCE, largest_difference, offline, oracle, workload

pytestmark = pytest.mark.engine


def test_a_cold_request_takes_nothing_from_the_prefix_cache(pair_dirs: tuple[Path, Path]) -> None:
    sequences = workload(300)[8:12]  # four rollouts of one prompt
    with offline(*pair_dirs) as engine:
        engine.score(sequences)
        warm, cold = engine.score(sequences), engine.score(sequences, cold=True)
    assert all(scored.cached_tokens > 0 for scored in warm)
    assert all(scored.cached_tokens == 0 for scored in cold)
    assert largest_difference(cold, oracle(*pair_dirs, sequences)) <= TOLERANCE
