"""Registers the pair model in every process that vLLM starts (entry point `vllm.general_plugins`)."""

from densepath.engine.vllm import ARCHITECTURE, HYBRID_ARCHITECTURE
from densepath.engine.vllm.lifetime import end_with_service
from densepath.engine.vllm.reasons import filter_logs


def register() -> None:
    """Register the pair model by name. vLLM imports it in the process that builds it."""
    from vllm import ModelRegistry

    from densepath.engine.vllm.hybrid_config import register_config

    end_with_service()
    filter_logs()
    register_config()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "densepath.engine.vllm.model:DensepathPair")
        ModelRegistry.register_model(HYBRID_ARCHITECTURE, "densepath.engine.vllm.hybrid:DensepathHybridPair")
