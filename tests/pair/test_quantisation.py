"""What is known of a quantised checkpoint before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import make_checkpoint
from damage import change_tensors, edit
from densepath.errors import InvalidRequestError
from densepath.pair.checkpoint import require_checkpoint
from densepath.pair.pair import load_pair
from densepath.verification.start import count_parameters
from quantised import quantise


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "gptq, 4 bits"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, "awq, 4 bits"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
            "bitsandbytes, 4 bits",
        ),
        ({"quant_method": "fp8", "fmt": "e4m3"}, "fp8"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 4},
                        "input_activations": {"num_bits": 8},
                    }
                },
            },
            "compressed-tensors, 4 bits",
        ),
        ("?", "by an unknown method"),
    ],
    ids=str,
)
def test_a_quantisation_is_told_in_words(
    config: Any, words: str, dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    edit("config.json", compression_config=config)(dirs[0])
    found = load_pair(*dirs, cache_dir=tmp_path / "cache")
    assert found.quantisations == (words, None)


def test_a_quantised_model_is_computed_in_the_dtype_of_its_other_weights(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain", seed=1, dtype=torch.float16)
    quantised, _ = quantise(plain, tmp_path, "compressed-tensors W8A8 int8")
    found = load_pair(quantised, plain, cache_dir=tmp_path / "cache")
    assert (found.dtype, found.reference_dtype) == ("float16", "float16")
    assert count_parameters(quantised, quantised=True) == count_parameters(plain, quantised=False)


@pytest.mark.parametrize(
    ("name", "end", "says"),
    [
        ("compressed-tensors W4A16", "weight_packed", "lacks 1 of the tensors that LlamaForCausalLM needs"),
        ("compressed-tensors W4A16", "weight_scale", "has 1 quantised weights without their scales"),
        ("compressed-tensors W8A8 int8", "weight_scale", "has 1 quantised weights without their scales"),
        ("fp8 in blocks", "weight_scale_inv", "has 1 quantised weights without their scales"),
        ("GPTQ 4 bits", "scales", "has 1 quantised weights without their scales"),
        ("AWQ 4 bits", "qweight", "lacks 1 of the tensors that LlamaForCausalLM needs"),
    ],
)
def test_a_lost_part_of_a_quantised_weight_is_told(name: str, end: str, says: str, tmp_path: Path) -> None:
    """vLLM would read it as whatever was in memory."""
    plain = make_checkpoint(tmp_path / "plain", seed=1, dtype=torch.bfloat16)
    quantised, _ = quantise(plain, tmp_path, name)
    assert require_checkpoint(quantised).directory == quantised
    lost = f"model.layers.1.mlp.up_proj.{end}"
    change_tensors(lambda tensors: tensors.pop(lost))(quantised)
    with pytest.raises(InvalidRequestError, match=says) as refused:
        require_checkpoint(quantised)
    assert "model.layers.1.mlp.up_proj." in str(refused.value)
