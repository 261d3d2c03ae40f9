"""POST /admin/selftest."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api.running import CONTEXT_LENGTH, make_service, running
from densepath.engine.fake import FakeScorer
from densepath.engine.scorer import Scored
from densepath.pair.pair import Pair
from densepath.sequences import Sequence

HEADERS = {"Authorization": "Bearer k3y"}


class Noisy(FakeScorer):
    """Each score is a little higher than the one before, or no number at all."""

    step: float = 0.0
    fault: float = 0.0

    async def score(self, sequence: Sequence, *args: Any, **kwargs: Any) -> Scored:
        scored = await super().score(sequence, *args, **kwargs)
        scored.logp_reference_T[:] += self.step * self.scored + self.fault
        return scored


def ask(pair: Pair, scorer: FakeScorer) -> tuple[httpx.Response, float]:
    with running(make_service(pair, scorer=scorer), admin_keys=("k3y",)) as served:
        answer = served.client.post("/admin/selftest", headers=HEADERS)
        served.idle()
        return answer, served.metric("densepath_score_noise")


def test_the_largest_difference_is_returned_and_shown(pair: Pair) -> None:
    answer, shown = ask(pair, FakeScorer(CONTEXT_LENGTH))
    assert answer.json()["largest_difference"] == shown == 0.0
    assert answer.json()["model_version"] == pair.version
    noisy = Noisy(CONTEXT_LENGTH)
    noisy.step = 0.25
    answer, shown = ask(pair, noisy)
    probes = answer.json()["probes"]
    assert noisy.scored == 4 * probes
    assert answer.json()["largest_difference"] == shown == pytest.approx(0.25 * 3 * probes, abs=1e-3)


def test_a_selftest_without_numbers_is_an_error(pair: Pair) -> None:
    broken = Noisy(CONTEXT_LENGTH)
    broken.fault = float("nan")
    answer, _ = ask(pair, broken)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "non_finite_score")
