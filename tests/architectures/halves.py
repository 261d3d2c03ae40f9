"""Models of text and images, of which the text half is served."""

from __future__ import annotations

from architectures.specimen import HALF, Specimen

WHOLE_MODELS_SHOWN: dict[str, Specimen] = {
    "Gemma 3": Specimen("gemma3", f"{HALF}, sliding window"),
    "Gemma 4": Specimen("gemma4", f"{HALF}, sliding window, inputs per layer"),
    "Llama 4": Specimen("llama4", f"{HALF}, MoE"),
    "Mistral 3": Specimen("mistral3", f"{HALF}, sliding window"),
    "Qwen2-VL": Specimen("qwen2_vl", f"{HALF}, M-RoPE"),
    "Qwen2.5-VL": Specimen("qwen2_5_vl", f"{HALF}, M-RoPE"),
    "Qwen3-VL": Specimen("qwen3_vl", f"{HALF}, M-RoPE"),
    "LLaVA": Specimen("llava", HALF),
    "LLaVA-OneVision": Specimen("llava_onevision", HALF),
    "InternVL": Specimen("internvl", HALF),
    "SmolVLM": Specimen("smolvlm", HALF),
    "EXAONE 4.5": Specimen("exaone4_5", f"{HALF}, sliding window"),
    "GLM-4V": Specimen("glm4v", f"{HALF}, M-RoPE"),
    "Command A Vision": Specimen("cohere2_vision", f"{HALF}, sliding window"),
}
