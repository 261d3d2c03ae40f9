"""What vLLM changes in its config for the architecture of a hybrid, such as the dtype of the states."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from densepath.engine.vllm import HYBRID_ARCHITECTURE


class HybridConfig(VerifyAndUpdateConfig):  # type: ignore[misc]  # vllm is untyped here
    """Calls what vLLM has for the SFT's own architecture."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """vLLM calls this before it decides how to keep states."""
        for architecture in vllm_config.model_config.hf_config.densepath_sft_architectures:
            if hook := MODELS_CONFIG_MAP.get(architecture):
                hook.verify_and_update_config(vllm_config)


def register_config() -> None:
    """vLLM finds the class by the architecture of the pair."""
    MODELS_CONFIG_MAP[HYBRID_ARCHITECTURE] = HybridConfig
