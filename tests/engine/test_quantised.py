"""Quantised models are computed as their dequantised weights say, beside a full-precision model too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel

from checkpoints import make_checkpoint
from densepath.engine.vllm import sides
from densepath.pair.pair import load_pair
from densepath.verification.verdict import Difference
from quantised import quantise

from .test_verification import verified
from .test_vllm_pair import TOLERANCE

pytestmark = pytest.mark.engine
AVX512 = pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="4-bit kernels need AVX-512")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plain"), seed=1, hidden_size=128, dtype=torch.bfloat16)


def say(difference: Difference | None, what: str, say_difference: Callable[[str, float], None]) -> Difference:
    assert difference is not None
    say_difference(f"{what}, largest", difference.largest)
    say_difference(f"{what}, mean", difference.mean)
    return difference


@AVX512
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
    ("sft_name", "reference_name"),
    [
        pytest.param("GPTQ 4 bits", "AWQ 4 bits", marks=AVX512),
        ("compressed-tensors W8A8 fp8", "compressed-tensors W8A8 int8"),
    ],
)
async def test_two_quantisations_and_two_dtypes_in_one_engine(
    sft_name: str,
    reference_name: str,
    plain: Path,
    tmp_path: Path,
    say_difference: Callable[[str, float], None],
) -> None:
    """Each start is verified against the checkpoint itself, dequantised by the oracle."""
    half = make_checkpoint(tmp_path / "half", seed=3, hidden_size=128, dtype=torch.float16)
    sft = quantise(half, tmp_path / "sft", sft_name)[0]
    reference = quantise(plain, tmp_path / "reference", reference_name)[0]
    verdict = await verified(load_pair(sft, reference, cache_dir=tmp_path / "cache"))
    assert verdict.verified
    for name, dtype, difference, limit in (
        (sft_name, "float16", verdict.sft, verdict.limit),
        (reference_name, "bfloat16", verdict.reference, verdict.reference_limit),
    ):
        off = say(difference, f"quantised, {name}, {dtype}", say_difference)
        say_difference(f"quantised, {name}, {dtype}, limit", limit or 0.0)
        assert off.mean < (0.4 if "W8A8" in name else 0.05)
    say_difference(f"noise of the engine, {sft_name} with {reference_name}", verdict.noise or 0.0)


def test_four_bits_on_a_processor_without_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's build for AVX2 chooses a kernel that it does not have."""
    model = torch.nn.Linear(1, 1)
    model.quant_method = SimpleNamespace(kernel=object.__new__(CPUWNA16LinearKernel))  # type: ignore[assignment]
    monkeypatch.setattr(sides, "_has_four_bit_products", lambda: False)
    with pytest.raises(ValueError, match="4-bit weights need a processor with AVX-512"):
        sides.check_kernels(model)
    sides.check_kernels(torch.nn.Linear(1, 1))
