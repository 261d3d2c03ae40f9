"""Quantised models are computed as their dequantised weights say, beside a full-precision model too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints import make_checkpoint
from densepath.pair.pair import load_pair
from densepath.verification.verdict import Difference
from quantised import quantise

from .test_verification import verified
from .test_vllm_pair import TOLERANCE

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plain"), seed=1, hidden_size=128, dtype=torch.bfloat16)


def say(difference: Difference | None, what: str, say_difference: Callable[[str, float], None]) -> Difference:
    assert difference is not None
    say_difference(f"{what}, largest", difference.largest)
    say_difference(f"{what}, mean", difference.mean)
    return difference


async def test_a_quantised_sft_with_a_full_precision_reference(
    plain: Path, pair_dirs: tuple[Path, Path], tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    """Compared with the dequantised model that the test has made, by another way than the oracle's."""
    name = "compressed-tensors W4A16"
    quantised, exact = quantise(plain, tmp_path, name)
    pair = load_pair(quantised, pair_dirs[1], cache_dir=tmp_path)
    assert (pair.dtype, pair.reference_dtype) == ("bfloat16", "float32")
    assert pair.quantisations == ("compressed-tensors, 4 bits", None)
    dequantised = load_pair(exact, pair_dirs[1], cache_dir=tmp_path)
    verdict = await verified(replace(dequantised, dtype="bfloat16"), loaded=(quantised, pair_dirs[1]))
    sft = say(verdict.sft, f"quantised sft, {name}, bfloat16", say_difference)
    reference = say(verdict.reference, "its reference, float32", say_difference)
    say(verdict.reward, f"reward with a quantised sft, {name}", say_difference)
    assert verdict.limit is not None
    assert sft.largest < verdict.limit < 1
    assert sft.mean < 0.05
    assert reference.largest < TOLERANCE, "the quantised model adds no noise to the other"


@pytest.mark.parametrize(
    "names",
    [("GPTQ 4 bits", "AWQ 4 bits"), ("compressed-tensors W8A8 int8", "compressed-tensors W8A8 fp8")],
    ids=" with ".join,
)
async def test_two_quantisations_in_one_engine(
    names: tuple[str, str], plain: Path, tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    """Each start is verified against the checkpoint itself, dequantised by the oracle."""
    sft, reference = (quantise(plain, tmp_path / name, name)[0] for name in names)
    pair = load_pair(sft, reference, cache_dir=tmp_path / "cache")
    verdict = await verified(pair)
    assert verdict.verified
    for name, difference, limit in zip(
        names, (verdict.sft, verdict.reference), (verdict.limit, verdict.reference_limit), strict=True
    ):
        off = say(difference, f"quantised, {name}, bfloat16", say_difference)
        say_difference(f"quantised, {name}, bfloat16, limit", limit or 0.0)
        assert off.mean < (0.05 if "W8A8" not in name else 0.4)
    say_difference(f"noise of the engine, {' with '.join(names)}", verdict.noise or 0.0)
