"""The verified start catches what made the real engine wrong, in silence or at the first request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import make_checkpoint
from densepath.config import EngineOptions, Verify
from densepath.engine.vllm import layers
from densepath.engine.vllm.arguments import engine_arguments
from densepath.engine.vllm.longrope import ShortSequences
from densepath.errors import InvalidPairError
from densepath.pair.pair import Pair, load_pair
from densepath.sequences import Sequence
from densepath.verification.start import Verifier
from densepath.verification.verdict import Verdict

from .in_process import InProcessScorer
from .other_checkpoints import make_other
from .test_longrope import make_phi3

pytestmark = pytest.mark.engine

Q_PROJ = "model.layers.{}.self_attn.q_proj.weight"
DOWN_PROJ = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def empty_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


async def verified(pair: Pair, *, loaded: tuple[Path, Path] | None = None, **overrides: Any) -> Verdict:
    """The verdict on the pair, with `loaded` in the engine where that is not the pair itself."""
    arguments = engine_arguments(
        *(loaded or (pair.sft, pair.reference)),
        checkpoint_dtype=pair.dtype,
        reference_dtype=pair.reference_dtype,
        context_length=pair.context_length,
        options=EngineOptions(kv_cache_memory_bytes=32 << 20),
    ) | {"max_num_batched_tokens": 512, **overrides}
    scorer = InProcessScorer(arguments)
    try:
        return await Verifier(pair, arguments, "cpu", cuda=False, verify=Verify.AUTO, say=print)(scorer)
    finally:
        await scorer.close()


@pytest.fixture
def pair(pair_dirs: tuple[Path, Path], tmp_path: Path) -> Pair:
    return load_pair(*pair_dirs, cache_dir=tmp_path)


@pytest.mark.usefixtures("oracle_once")
async def test_a_right_engine(pair: Pair, say_difference: Callable[[str, float], None]) -> None:
    verdict = await verified(pair)
    assert verdict.sft is not None
    assert verdict.reference is not None
    assert verdict.reward is not None
    say_difference(f"verified start, {verdict.probes} probes, log p", verdict.sft.largest)
    assert max(verdict.sft.largest, verdict.reference.largest, verdict.reward.largest) < 2e-5
    assert verdict.noise is not None
    assert verdict.noise < 2e-5


def without(name: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.pop(name)


def swapped(tensors: dict[str, torch.Tensor]) -> None:
    one, other = Q_PROJ.format(0), Q_PROJ.format(1)
    tensors[one], tensors[other] = tensors[other], tensors[one]


@pytest.mark.usefixtures("oracle_once")
@pytest.mark.parametrize(
    "damage",
    [without(Q_PROJ.format(1)), without(DOWN_PROJ), swapped],
    ids=["a missing q_proj", "a missing down_proj", "two tensors swapped"],
)
async def test_the_engine_loads_other_tensors(damage: Any, pair: Pair, dirs: tuple[Path, Path]) -> None:
    file = dirs[1] / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})
    with pytest.raises(InvalidPairError, match=r"compute the reference as transformers|of the reference on"):
        await verified(pair, loaded=dirs)


@pytest.mark.usefixtures("oracle_once")
async def test_the_reference_writes_over_the_sft_s_output(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA graphs of one memory pool did."""
    from densepath.engine.vllm.model import DensepathPair

    forward = DensepathPair.forward

    def overwritten(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = forward(self, *args, **kwargs)
        half = hidden.shape[-1] // 2
        if len(hidden) <= 512:
            hidden[:, :half] = hidden[:, half:]
        return hidden

    monkeypatch.setattr(DensepathPair, "forward", overwritten)
    with pytest.raises(InvalidPairError, match="compute the sft as transformers"):
        await verified(pair)


async def test_longrope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right by the length of each sequence; where the context's length decides, it is refused."""
    dirs = tuple(make_phi3(tmp_path / name, seed) for seed, name in enumerate(("sft", "reference")))
    pair = load_pair(*dirs, cache_dir=tmp_path)
    verdict = await verified(pair)
    assert verdict.sft is not None
    assert verdict.sft.largest < 2e-5

    def raw_ids(_: Any, sequence: Sequence) -> list[int]:
        return sequence.token_ids_L.tolist()

    monkeypatch.setattr(ShortSequences, "prompt_ids", raw_ids)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    with pytest.raises(InvalidPairError, match="compute the sft as transformers"):
        await verified(pair)


async def test_a_head_size_that_ends_the_engine_at_its_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dirs = tuple(
        make_other(tmp_path / name, "llama", seed=seed, num_attention_heads=4)
        for seed, name in enumerate(("sft", "reference"))
    )
    # Which would say so before anything is loaded.
    monkeypatch.setattr(layers, "check_layers", lambda *_, **__: None)
    with pytest.raises(InvalidPairError, match=r"cannot score a short sequence.*head_dim=16"):
        await verified(load_pair(*dirs, cache_dir=tmp_path))


async def test_16_bits_are_held_against_transformers_own(
    tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    dirs = tuple(
        make_checkpoint(tmp_path / name, seed=seed, dtype=torch.bfloat16)
        for seed, name in enumerate(("sft", "reference"))
    )
    pair = load_pair(*dirs, cache_dir=tmp_path)
    verdict = await verified(pair)
    assert verdict.verified
    assert verdict.limit is not None
    assert verdict.reward is not None
    say_difference(f"verified start in bfloat16 (limit {verdict.limit:.2g}), reward", verdict.reward.largest)
    assert 1e-3 < verdict.limit < 1
