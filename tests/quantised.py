"""Quantised checkpoints, written by hand in the form of each quantiser, and the same models dequantised.

Only the linear layers inside the layers of the model are quantised, by rounding to the nearest value.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
_PROJECTION = ".layers."
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
#: How a weight [out, in] is stored: tensors by the end of their names, and the weight that they stand for.
Stored = tuple[dict[str, Tensor], Tensor]


class Format(NamedTuple):
    """A way to quantise: the quantization_config of its checkpoints, and how a weight is stored."""

    config: dict[str, Any]
    store: Callable[[Tensor, torch.dtype], Stored]


def quantise(source: Path, directory: Path, name: str) -> tuple[Path, Path]:
    """Write a checkpoint's linear layers in a format of `FORMATS`, and the dequantised model in float32.

    `source` is a checkpoint with one file of weights. Returns (quantised, dequantised), two directories
    below `directory`.
    """
    quantised, exact = directory / "quantised", directory / "dequantised"
    for target in (quantised, exact):
        shutil.copytree(source, target)
    packed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        if _PROJECTION in key and tensor.ndim == 2:
            stored, weight = FORMATS[name].store(tensor.float(), tensor.dtype)
            packed |= {f"{key.removesuffix('weight')}{end}": value for end, value in stored.items()}
            plain[key] = weight
        else:
            packed[key] = tensor
            plain[key] = tensor.float()
    for target, tensors in ((quantised, packed), (exact, plain)):
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, target / "model.safetensors", metadata={"format": "pt"})
    edit_config(quantised, quantization_config=FORMATS[name].config)
    edit_config(exact, dtype="float32")
    return quantised, exact


def edit_config(directory: Path, **fields: Any) -> None:
    """Set fields of a checkpoint's config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _integers(weight: Tensor, bits: int, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Signed integers [out, in] and symmetric scales [out, groups], rounded to `dtype`."""
    high = 2 ** (bits - 1) - 1
    grouped = weight.unflatten(1, (-1, group))
    scale = (grouped.abs().amax(-1) / high).clamp(min=1e-6).to(dtype)
    integers = (grouped / scale.float()[..., None]).round().clamp(-high - 1, high).flatten(1)
    return integers.to(torch.int32), scale


def _times(integers: Tensor, scale: Tensor) -> Tensor:
    groups = scale.shape[1]
    return (integers.float().unflatten(1, (groups, -1)) * scale.float()[..., None]).flatten(1)


def _pack(values: Tensor, bits: int, dim: int) -> Tensor:
    """Unsigned values of a few bits, packed into int32 along a dimension, the first in the lowest bits."""
    each = values.to(torch.int64).unflatten(dim, (-1, 32 // bits)).movedim(dim + 1, -1)
    words = (each << (bits * torch.arange(32 // bits))).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _compressed(bits: int) -> Callable[[Tensor, torch.dtype], Stored]:
    def store(weight: Tensor, dtype: torch.dtype) -> Stored:
        integers, scale = _integers(weight, bits, GROUP, dtype)
        stored = {
            "weight_packed": _pack(integers + 2 ** (bits - 1), bits, 1),
            "weight_scale": scale,
            "weight_shape": torch.tensor(weight.shape),
        }
        return stored, _times(integers, scale)

    return store


def _int8(weight: Tensor, dtype: torch.dtype) -> Stored:
    integers, scale = _integers(weight, 8, weight.shape[1], dtype)
    return {"weight": integers.to(torch.int8), "weight_scale": scale}, _times(integers, scale)


def _fp8(weight: Tensor, dtype: torch.dtype) -> Stored:
    scale = (weight.abs().amax(1, keepdim=True) / 448).to(dtype)
    eight = (weight / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": eight, "weight_scale": scale}, eight.float() * scale.float()


def _fp8_blocks(weight: Tensor, _: torch.dtype) -> Stored:
    rows, columns = (-(-size // 128) for size in weight.shape)
    scale = torch.zeros(rows, columns)
    whole = torch.zeros(rows * 128, columns * 128)
    whole[: weight.shape[0], : weight.shape[1]] = weight
    blocks = whole.view(rows, 128, columns, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    eight = (blocks / scale[:, None, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    exact = (eight.float() * scale[:, None, :, None]).view(whole.shape)
    cut = slice(weight.shape[0]), slice(weight.shape[1])
    return {"weight": eight.view(whole.shape)[cut], "weight_scale_inv": scale}, exact[cut]


def _gptq(bits: int) -> Callable[[Tensor, torch.dtype], Stored]:
    def store(weight: Tensor, dtype: torch.dtype) -> Stored:
        integers, scale = _integers(weight, bits, GROUP, dtype)
        zeros = torch.full_like(scale.T, 2 ** (bits - 1) - 1, dtype=torch.int32)  # stored less one
        stored = {
            "qweight": _pack((integers + 2 ** (bits - 1)).T, bits, 0),
            "qzeros": _pack(zeros, bits, 1),
            "scales": scale.T,
            "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
        }
        return stored, _times(integers, scale)

    return store


def _awq(weight: Tensor, dtype: torch.dtype) -> Stored:
    grouped = weight.unflatten(1, (-1, GROUP))
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / 15).to(dtype)
    zero = (-low / scale.float()).round().clamp(0, 15)
    values = (grouped / scale.float()[..., None] + zero[..., None]).round().clamp(0, 15)
    exact = ((values - zero[..., None]) * scale.float()[..., None]).flatten(1)

    def interleaved(columns: Tensor) -> Tensor:
        return _pack(columns.unflatten(1, (-1, 8))[:, :, _AWQ_ORDER].flatten(1), 4, 1)

    stored = {"qweight": interleaved(values.flatten(1).T), "qzeros": interleaved(zero.T), "scales": scale.T}
    return stored, exact


def _compressed_config(
    form: str, weights: dict[str, Any], activations: dict[str, Any] | None
) -> dict[str, Any]:
    common = {"symmetric": True, "dynamic": False, "type": "int"}
    group = {
        "targets": ["Linear"],
        "weights": common | weights,
        "input_activations": activations
        and {"symmetric": True, "dynamic": True, "type": "int"} | activations,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def _gptq_config(bits: int) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": True}


_TOKEN = {"num_bits": 8, "strategy": "token"}
_GROUPS = {"strategy": "group", "group_size": GROUP}
FORMATS = {
    "compressed-tensors W4A16": Format(
        _compressed_config("pack-quantized", {"num_bits": 4, **_GROUPS}, None), _compressed(4)
    ),
    "compressed-tensors W8A16": Format(
        _compressed_config("pack-quantized", {"num_bits": 8, **_GROUPS}, None), _compressed(8)
    ),
    "compressed-tensors W8A8 int8": Format(
        _compressed_config("int-quantized", {"num_bits": 8, "strategy": "channel"}, _TOKEN), _int8
    ),
    "compressed-tensors W8A8 fp8": Format(
        _compressed_config(
            "float-quantized",
            {"num_bits": 8, "strategy": "channel", "type": "float"},
            {**_TOKEN, "type": "float"},
        ),
        _fp8,
    ),
    "GPTQ 4 bits": Format(_gptq_config(4), _gptq(4)),
    "GPTQ 8 bits": Format(_gptq_config(8), _gptq(8)),
    "AWQ 4 bits": Format(
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, _awq
    ),
    "fp8 in blocks": Format(
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
        },
        _fp8_blocks,
    ),
}
