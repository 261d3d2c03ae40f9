"""Which of vLLM's classes runs a model."""

from __future__ import annotations

from typing import Any

#: vLLM's own classes of these have one window for all layers. Its class for any model of transformers has one
#: for each layer.
ONE_WINDOW = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
ANY_MODEL = "TransformersForCausalLM"


def vllm_class(config: Any, architecture: str) -> str:
    """The name of vLLM's class for a model whose config.json names this architecture."""
    if architecture in ONE_WINDOW and len(set(getattr(config, "layer_types", None) or ())) > 1:
        return ANY_MODEL
    return architecture
