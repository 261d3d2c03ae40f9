"""The full-precision weights that a GPTQ or AWQ checkpoint stands for.

transformers loads these formats only with packages that need a GPU. The values are exact in float32: an
integer less its zero point, times its scale. For compressed-tensors and fp8, transformers does the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

METHODS = frozenset({"gptq", "awq"})
#: The place of each output in a word of AWQ, by its four bits from the lowest.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def is_dequantised_here(directory: Path) -> bool:
    """Whether a checkpoint's weights are stored in a format of this module."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    quantisation = config.get("quantization_config")
    return isinstance(quantisation, dict) and quantisation.get("quant_method") in METHODS


def dequantised(
    directory: Path, quantisation: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, with [out, in] weights in `dtype` in the place of the quantised ones."""
    import torch
    from safetensors.torch import load_file

    held: dict[str, torch.Tensor] = {}
    index = directory / "model.safetensors.index.json"
    shards = (
        json.loads(index.read_text())["weight_map"].values() if index.is_file() else ["model.safetensors"]
    )
    for file in sorted(set(shards)):
        held |= load_file(directory / file)
    bits = int(quantisation.get("bits") or quantisation["w_bit"])
    unpack = _gptq if quantisation["quant_method"] == "gptq" else _awq
    for name in [name.removesuffix(".qweight") for name in held if name.endswith(".qweight")]:
        parts = {end: held.pop(f"{name}.{end}") for end in ("qweight", "qzeros", "scales")}
        group = held.pop(f"{name}.g_idx", None)
        integers, zeros = unpack(parts["qweight"], parts["qzeros"], bits, quantisation)
        scales = parts["scales"].float()
        if group is None:
            group = torch.arange(len(integers)) // (len(integers) // len(scales))
        held[f"{name}.weight"] = ((integers - zeros[group]) * scales[group]).T.to(dtype).contiguous()
    return held


def _gptq(
    qweight: torch.Tensor, qzeros: torch.Tensor, bits: int, quantisation: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [in, out] and zero points [groups, out]. The first format stores zero points less one."""
    less = 0 if quantisation.get("checkpoint_format") == "gptq_v2" else 1
    integers = _unpack(qweight.T, bits).T
    return integers, (_unpack(qzeros, bits) + less) % 2**bits


def _awq(
    qweight: torch.Tensor, qzeros: torch.Tensor, bits: int, quantisation: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [in, out] and zero points [groups, out]."""

    def ordered(words: torch.Tensor) -> torch.Tensor:
        return _unpack(words, bits).reshape(len(words), -1, 8)[:, :, _AWQ_ORDER].flatten(1)

    return ordered(qweight), ordered(qzeros)


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned values [rows, columns * 32 / bits] from int32 words, the lowest bits first."""
    import torch

    if 32 % bits:
        raise ValueError(f"weights of {bits} bits are not unpacked here")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values: torch.Tensor = (words[..., None] >> shifts) & (2**bits - 1)
    return values.flatten(1)
