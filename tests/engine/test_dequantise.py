"""The weights that GPTQ and AWQ checkpoints stand for, and that transformers does not unpack by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import make_checkpoint
from densepath.engine.dequantise import dequantised, is_dequantised_here
from densepath.engine.transformers import load_model
from densepath.errors import InvalidPairError
from quantised import FORMATS, edit_config, quantise

NAMES = ("GPTQ 4 bits", "GPTQ 8 bits", "AWQ 4 bits")
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "plain", seed=1, dtype=torch.float16)


def edit_tensors(directory: Path, **tensors: torch.Tensor | None) -> None:
    file = directory / "model.safetensors"
    held = load_file(file) | {f"{UP}.{end}": tensor for end, tensor in tensors.items()}
    save_file({name: t for name, t in held.items() if t is not None}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", NAMES)
def test_each_weight_is_exact(name: str, plain: Path, tmp_path: Path) -> None:
    checkpoint, exact = quantise(plain, tmp_path, name)
    assert is_dequantised_here(checkpoint)
    assert not is_dequantised_here(exact)
    got = dequantised(checkpoint, FORMATS[name].config, torch.float32)
    want = load_file(exact / "model.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[each].float(), want[each]) for each in want)
    model = load_model(checkpoint).state_dict()
    assert all(torch.equal(model[each], want[each]) for each in want)


def test_the_groups_of_gptq_may_be_in_any_order(plain: Path, tmp_path: Path) -> None:
    checkpoint, exact = quantise(plain, tmp_path, "GPTQ 4 bits")
    held = load_file(checkpoint / "model.safetensors")
    order = torch.randperm(len(held[f"{UP}.g_idx"]), generator=torch.Generator().manual_seed(0))
    edit_tensors(checkpoint, g_idx=held[f"{UP}.g_idx"][order])
    got = dequantised(checkpoint, FORMATS["GPTQ 4 bits"].config, torch.float32)[f"{UP}.weight"]
    scale_in = held[f"{UP}.scales"].float()[held[f"{UP}.g_idx"]]
    integers = load_file(exact / "model.safetensors")[f"{UP}.weight"].T / scale_in
    assert torch.allclose(got.T, integers * scale_in[order])


def test_the_second_format_of_gptq_stores_zero_points_as_they_are(plain: Path, tmp_path: Path) -> None:
    checkpoint, exact = quantise(plain, tmp_path, "GPTQ 4 bits")
    held = load_file(checkpoint / "model.safetensors")
    for each in held:
        if each.endswith("qzeros"):
            held[each] = torch.full_like(held[each], -0x77777778)  # an 8 in every four bits
    save_file(held, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = FORMATS["GPTQ 4 bits"].config | {"checkpoint_format": "gptq_v2"}
    got = dequantised(checkpoint, config, torch.float32)
    assert torch.equal(got[f"{UP}.weight"], load_file(exact / "model.safetensors")[f"{UP}.weight"])


def test_other_bits_and_lost_weights_are_refused(plain: Path, tmp_path: Path) -> None:
    checkpoint, _ = quantise(plain, tmp_path, "GPTQ 4 bits")
    with pytest.raises(ValueError, match="weights of 3 bits are not unpacked here"):
        dequantised(checkpoint, FORMATS["GPTQ 4 bits"].config | {"bits": 3}, torch.float32)
    edit_tensors(checkpoint, qweight=None, qzeros=None, scales=None, g_idx=None)
    edit_config(checkpoint, dtype="float16")
    with pytest.raises(InvalidPairError, match=f"such as {UP}.weight"):
        load_model(checkpoint)
