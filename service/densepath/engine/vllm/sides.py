"""What vLLM is told about one of the two models. Its own config describes the SFT."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.model import _get_and_verify_dtype
from vllm.config.utils import replace
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.attention.backend import subclass_attention_backend
from vllm.v1.attention.backends.registry import AttentionBackendEnum


def side_config(
    vllm_config: Any,
    hf_config: Any,
    architectures: list[str],
    *,
    directory: str,
    dtype: torch.dtype,
    prefix: str,
) -> Any:
    """vLLM's config for the model in `directory`, which is computed in `dtype`.

    `prefix` begins the names of its layers. Raises ValueError if vLLM does not compute this model in that
    dtype, or does not run its quantisation on this device.
    """
    side = vllm_config.with_hf_config(hf_config, architectures=architectures)
    model_config = side.model_config
    model_config.model = directory
    model_config.dtype = _get_and_verify_dtype(
        model_config.model, model_config.hf_config, dtype, is_pooling_model=True
    )
    if model_config.dtype == torch.float32 and current_platform.is_cuda():
        # As in `engine_arguments`, which cannot say it of one model alone.
        side.attention_config = replace(side.attention_config, backend=AttentionBackendEnum.FLEX_ATTENTION)
    model_config.quantization = None
    model_config._verify_quantization()  # finds the method in the config
    side.quant_config = VllmConfig.get_quantization_config(model_config, side.load_config)
    if getattr(side.quant_config, "kv_cache_scheme", None) is not None:
        raise ValueError("it also quantises the KV cache (kv_cache_scheme), which both models share")
    if side.quant_config is not None:
        _name_layers_as_checkpoint(side.quant_config, f"{prefix}.")
    return side


def quantisation_of(hf_config: Any) -> str | None:
    """The method by which a model's weights are quantised, or None."""
    config = getattr(hf_config, "quantization_config", None) or getattr(hf_config, "compression_config", None)
    return None if config is None else str(config.get("quant_method", "compressed-tensors"))


def _name_layers_as_checkpoint(quant_config: Any, prefix: str) -> None:
    """Let a quantisation see the names that its checkpoint has: its config may list layers by them."""
    method_of = quant_config.get_quant_method
    quant_config.get_quant_method = lambda layer, prefix_: method_of(layer, prefix_.removeprefix(prefix))


def check_kernels(model: nn.Module) -> None:
    """Raise ValueError for kernels that this processor lacks. vLLM would notice at the first request."""
    if _has_four_bit_products():
        return
    for module in model.modules():
        owners = (getattr(module, name, None) for name in ("quant_method", "scheme"))
        if any(isinstance(getattr(owner, "kernel", None), CPUWNA16LinearKernel) for owner in owners):
            raise ValueError("4-bit weights need a processor with AVX-512")


def _has_four_bit_products() -> bool:
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def prepare_for(model: nn.Module, layers: list[Any], model_config: Any) -> None:
    """Make vLLM prepare a model and its attention layers for their own dtype, and not for that of the SFT.

    The CPU's attention takes its kernel and the sizes of its buffers from the dtype of vLLM's config. The
    kernels of quantised weights take the dtype of their results from torch's default dtype.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, QuantizeMethodBase):
            method.process_weights_after_loading = _with_default_dtype(
                method.process_weights_after_loading, model_config.dtype
            )
    for layer in layers:
        backend = _backend_for(layer.get_attn_backend(), model_config)
        layer.get_attn_backend = lambda backend=backend: backend
        if after_loading := getattr(layer, "process_weights_after_loading", None):
            layer.process_weights_after_loading = lambda _, of=after_loading: of(model_config.dtype)


def _with_default_dtype(function: Any, dtype: torch.dtype) -> Any:
    def called(module: nn.Module) -> Any:
        with set_default_torch_dtype(dtype):
            return function(module)

    return called


def _backend_for(backend: Any, model_config: Any) -> Any:
    class Builder(backend.get_builder_cls()):  # type: ignore[misc]  # vllm is untyped here
        def __init__(self, spec: Any, names: list[str], vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            own = copy.copy(vllm_config)
            own.model_config = model_config
            super().__init__(spec, names, own, *args, **kwargs)

    return subclass_attention_backend("Reference", backend, Builder)
