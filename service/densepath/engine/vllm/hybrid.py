"""Pairs of hybrids: models in which some layers keep a state in place of keys and values.

Such layers are linear attention, state spaces (Mamba) and short convolutions. vLLM keeps one state of each
layer per block of tokens that it caches, so a rollout can start from the state at a block's end. vLLM asks
the class of the model for the shapes of these states. The class of a pair answers for both models.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.models.registry import ModelRegistry
from vllm.transformers_utils.config import get_config
from vllm.v1.kv_cache_interface import MambaSpec

from densepath.engine.vllm.environment import cpu_build
from densepath.engine.vllm.model import DensepathPair


class DensepathHybridPair(DensepathPair):
    """A pair of hybrids of one architecture. Their widths, depths and states may differ."""

    is_hybrid = True
    has_inner_state = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        reference_config = get_config(config.densepath_reference, trust_remote_code=False)
        if list(reference_config.architectures) != list(config.densepath_sft_architectures):
            raise ValueError(
                "the sft has layers that keep a state: serve it with a reference of the same architecture"
            )
        if getattr(torch, config.densepath_reference_dtype) != vllm_config.model_config.dtype:
            raise ValueError(
                "the sft and the reference have layers that keep a state: give --dtype, so that both are "
                "computed in one dtype"
            )
        if cpu_build():
            from densepath.engine.vllm import linear_attention

            linear_attention.install()
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    @classmethod
    def get_mamba_specs_from_config(cls, vllm_config: Any) -> list[MambaSpec]:
        """One spec per model. vLLM makes a block of keys and values as large as the largest state."""
        sft_config = vllm_config.model_config.hf_config
        reference_config = get_config(sft_config.densepath_reference, trust_remote_code=False)
        sides = (
            (sft_config, list(sft_config.densepath_sft_architectures)),
            (reference_config, list(reference_config.architectures)),
        )
        specs: list[MambaSpec] = []
        for config, architectures in sides:
            side = vllm_config.with_hf_config(config, architectures=architectures)
            model, _ = ModelRegistry.resolve_model_cls(architectures, model_config=side.model_config)
            specs.append(
                MambaSpec(
                    shapes=tuple(model.get_mamba_state_shape_from_config(side)),
                    dtypes=model.get_mamba_state_dtype_from_config(side),
                    block_size=-1,
                )
            )
        return specs

    def get_mamba_state_copy_funcs(self, mamba_types: set[Any]) -> dict[Any, Any]:
        """How vLLM copies the states of each type: both models are of one class."""
        funcs: dict[Any, Any] = self.sft.get_mamba_state_copy_funcs(mamba_types)
        return funcs
