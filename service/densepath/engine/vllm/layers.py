"""Checks of the layers that vLLM has built, before any weights are loaded into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.mamba.abstract import MambaBase

from densepath.engine.vllm.reasons import reason_of


def check_layers(layers: list[Any], side: str, dtype: torch.dtype) -> None:
    """Raise ValueError for a layer of one side that the engine cannot run, and say what would be right.

    `layers` are those that vLLM knows by name. Without this check, the CPU's attention fails at the first
    request.
    """
    for layer in layers:
        if not isinstance(layer, AttentionLayerBase):
            continue
        if isinstance(layer, MambaBase):
            raise ValueError(  # noqa: TRY004  # a model is at fault, not an argument
                f"the {side} has state-space or linear attention layers ({type(layer).__name__}): the pair "
                "runs models whose layers all attend over keys and values"
            )
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


@contextmanager
def built_side(
    vllm_config: Any, side: str, dtype: torch.dtype, quantisation: str | None
) -> Iterator[list[Any]]:
    """A block in which one side's model is built in `dtype`. Raises ValueError that names the side.

    `quantisation` is the method by which the weights are quantised, or None.
    The list is filled after the block, with the layers of this side that vLLM knows by name.
    """
    layers = vllm_config.compilation_config.static_forward_context
    before = set(layers)  # a class may give its layers names without the side's prefix
    mine: list[Any] = []
    try:
        yield mine
    except Exception as error:
        reason = reason_of(error)
        if "Duplicate layer name" in reason:
            reason += " (it cannot tell two models of this architecture apart in one engine)"
        if quantisation is not None:
            reason = reason.partition(" Reasons: ")[0].partition(" Must be one of ")[0].rstrip(".")
            raise ValueError(
                f"vLLM cannot run the {side}, whose weights are quantised ({quantisation}), on this device: "
                f"{reason}; serve the full-precision checkpoint"
            ) from error
        raise ValueError(f"vLLM cannot build the {side}: {reason}") from error
    mine += [layer for name, layer in layers.items() if name not in before]
    check_layers(mine, side, dtype)
