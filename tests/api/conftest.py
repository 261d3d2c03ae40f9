from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.running import Running, make_service, pair, running
from densepath.config import Limits
from densepath.pair.pair import Pair

__all__ = ["pair"]  # a fixture of this folder

LIMITS = Limits(max_items=8, max_body_bytes=200_000, max_queued_tokens=200)


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Running]:
    """One service for a whole module: what a test does to it must not show in the next."""
    with running(make_service(pair, limits=LIMITS)) as service:
        yield service
