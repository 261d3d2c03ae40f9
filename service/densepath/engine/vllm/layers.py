"""Checks of the layers that vLLM has built, before any weights are loaded into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_mixer import MambaMixer

from densepath.engine.vllm.environment import cpu_build
from densepath.engine.vllm.reasons import reason_of

#: A layer that needs one of these has no kernel for a CPU.
GPU_LIBRARIES = ("triton", "cutlass")


def check_layers(layers: list[Any], side: str, dtype: torch.dtype, *, states: bool) -> None:
    """Raise ValueError for a layer of one side that the engine cannot run, and say what would be right.

    `layers` are those that vLLM knows by name. `states` says whether vLLM keeps the states of layers.
    Without this check, the CPU's attention fails at the first request.
    """
    for layer in layers:
        if not isinstance(layer, AttentionLayerBase):
            continue
        if isinstance(layer, MambaBase):
            if not states:
                raise ValueError(
                    f"the {side} has layers that keep a state ({type(layer).__name__}): such a model is "
                    "served with one of the same architecture"
                )
            if isinstance(layer, MambaMixer) and cpu_build():
                raise ValueError(f"the {side} has Mamba 1 layers, and vLLM has no kernel of them for a CPU")
            continue
        backend, head_size = layer.get_attn_backend(), getattr(layer, "head_size", None)
        if head_size is not None and not backend.supports_head_size(head_size):
            sizes = ", ".join(map(str, backend.get_supported_head_sizes()))
            raise ValueError(
                f"the {side}'s attention heads have {head_size} dimensions: on this device, serve a "
                f"checkpoint whose head_dim is one of {sizes}"
            )
        if not backend.supports_dtype(dtype):
            names = ", ".join(str(each).removeprefix("torch.") for each in backend.supported_dtypes)
            raise ValueError(
                f"the {side}'s attention does not run in {str(dtype).removeprefix('torch.')} on this device: "
                f"give --dtype one of {names}"
            )


def name_layers(compilation_config: Any, side: str, names: list[str]) -> None:
    """Put the side before each of these names that lacks it. vLLM finds a layer by its name at each step.

    Some classes of vLLM name layers without the prefix that they are given. Both models would have them.
    """
    layers = compilation_config.static_forward_context
    for name in names:
        if name.startswith(f"{side}."):
            continue
        layer = layers.pop(name)
        for attribute in ("layer_name", "prefix"):
            if getattr(layer, attribute, None) == name:
                setattr(layer, attribute, f"{side}.{name}")
        layers[f"{side}.{name}"] = layer
    compilation_config.static_all_moe_layers[:] = [
        f"{side}.{name}" if name in names and not name.startswith(f"{side}.") else name
        for name in compilation_config.static_all_moe_layers
    ]


@contextmanager
def built_side(
    vllm_config: Any, side: str, dtype: torch.dtype, quantisation: str | None
) -> Iterator[list[Any]]:
    """A block in which one side's model is built in `dtype`. Raises ValueError that names the side.

    `quantisation` is the method by which the weights are quantised, or None.
    The list is filled after the block, with the layers of this side that vLLM knows by name.
    """
    layers = vllm_config.compilation_config.static_forward_context
    before = set(layers)
    mine: list[Any] = []
    try:
        yield mine
    except Exception as error:
        reason = reason_of(error)
        if cpu_build() and any(word in reason for word in GPU_LIBRARIES):
            reason += " (vLLM runs one of its layers on a GPU only)"
        if quantisation is not None:
            reason = reason.partition(" Reasons: ")[0].partition(" Must be one of ")[0].rstrip(".")
            raise ValueError(
                f"vLLM cannot run the {side}, whose weights are quantised ({quantisation}), on this device: "
                f"{reason}; serve the full-precision checkpoint"
            ) from error
        raise ValueError(f"vLLM cannot build the {side}: {reason}") from error
    name_layers(vllm_config.compilation_config, side, [name for name in layers if name not in before])
    mine += [layer for name, layer in layers.items() if name not in before]
    check_layers(mine, side, dtype, states=vllm_config.cache_config.mamba_block_size is not None)
