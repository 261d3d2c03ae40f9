"""What is let pass, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from densepath.engine.scorer import Scored
from densepath.errors import InvalidPairError
from densepath.sequences import from_response
from densepath.verification.compare import FLOAT32_LIMIT, Limit, derive_limit, judge, largest_noise
from densepath.verification.probes import Probe

PROBES = (
    Probe("the first", from_response([1], list(range(12)))),
    Probe("the second", from_response([1], [2])),
)
WANT = [np.linspace(-5, -1, 12, dtype=np.float32), np.array([-2.0], dtype=np.float32)]
STRICT = Limit(FLOAT32_LIMIT, (FLOAT32_LIMIT, FLOAT32_LIMIT))


def got(first: float, second: float) -> dict[str, list[np.ndarray]]:
    return {
        "alone": [WANT[0], WANT[1]],
        "together": [WANT[0] + np.float32(first), WANT[1] + np.float32(second)],
    }


def test_a_difference_within_the_limit_is_reported() -> None:
    difference = judge("sft", got(5e-4, 0), WANT, PROBES, STRICT)
    assert difference.largest == pytest.approx(5e-4, rel=1e-3)
    assert difference.mean == pytest.approx(5e-4 * 12 / 26, rel=1e-2)


@pytest.mark.parametrize(("first", "second", "name"), [(2e-3, 0, "the first"), (0, -2e-3, "the second")])
def test_one_past_it_names_model_probe_and_round(first: float, second: float, name: str) -> None:
    with pytest.raises(InvalidPairError, match=f"the reference as .* 0.002 nats on {name}, together"):
        judge("reference", got(first, second), WANT, PROBES, STRICT)


def test_16_bits_are_allowed_what_transformers_own_16_bits_are_off() -> None:
    rng = np.random.default_rng(1)
    noisy = [each + rng.normal(0, 0.03, each.shape).astype(np.float32) for each in WANT]
    limit = derive_limit("bfloat16", {"float32": WANT, "bfloat16": noisy})
    assert 0.05 < limit.largest < 0.5
    judge("sft", {"alone": noisy}, WANT, PROBES, limit)
    with pytest.raises(InvalidPairError, match="the first"):  # every token is off, none by much
        judge("sft", got(0.8 * limit.largest, 0), WANT, PROBES, limit)
    assert derive_limit("float32", {"float32": WANT}) == STRICT


def test_what_is_no_number_is_past_every_limit() -> None:
    for broken in (got(float("nan"), 0), got(0, float("inf"))):
        with pytest.raises(InvalidPairError):
            judge("sft", broken, WANT, PROBES, STRICT)
    nan = [np.full_like(each, np.nan) for each in WANT]
    with pytest.raises(InvalidPairError):
        judge("sft", got(0, 0), nan, PROBES, STRICT)
    limit = derive_limit("bfloat16", {"float32": WANT, "bfloat16": nan})
    with pytest.raises(InvalidPairError):
        judge("sft", got(0, 0), WANT, PROBES, limit)


def test_noise_is_the_largest_difference_between_rounds() -> None:
    one = [Scored(WANT[0], WANT[0], 0)]
    other = [Scored(WANT[0], WANT[0] - np.float32(0.25), 0)]
    assert largest_noise({"alone": one, "together": other, "again": one}) == pytest.approx(0.25)
    assert largest_noise({"alone": one}) == 0.0
