"""Registers the pair model in every process that vLLM starts (entry point `vllm.general_plugins`)."""

from densepath.engine.vllm import ARCHITECTURE
from densepath.engine.vllm.lifetime import end_with_service
from densepath.engine.vllm.reasons import filter_logs


def register() -> None:
    """Register the pair model by name. vLLM imports it in the process that builds it."""
    from vllm import ModelRegistry

    end_with_service()
    filter_logs()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "densepath.engine.vllm.model:DensepathPair")
