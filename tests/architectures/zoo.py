"""All architectures of the matrix."""

from __future__ import annotations

from architectures.dense import DENSE_MODELS
from architectures.experts import EXPERT_MODELS
from architectures.halves import WHOLE_MODELS_SHOWN
from architectures.specimen import Specimen
from architectures.states import STATE_MODELS

ZOO: dict[str, Specimen] = DENSE_MODELS | EXPERT_MODELS | STATE_MODELS | WHOLE_MODELS_SHOWN

#: Classes that vLLM and transformers both name, and why the matrix has none of them.
LEFT_OUT: dict[str, str] = dict.fromkeys(
    (
        "Gemma3nForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
    ),
    "takes more than text, and a pair is of causal language models",
) | {"HrmTextForCausalLM": "its smallest pair takes vLLM minutes on two cores, and was not measured"}

#: What `make test` runs: every kind of model and every kind of outcome.
SAMPLE = [
    "Llama, llama3 rope",
    "SmolLM3",
    "Ministral 3",
    "Qwen2, windows on some layers",
    "Phi-3, LongRoPE",
    "GPT-2",
    "GPT-NeoX",
    "OPT",
    "Falcon",
    "BLOOM",
    "Gemma 3 text, bidirectional",
    "Gemma 3n text",
    "Nemotron",
    "Apertus",
    "Mixtral",
    "Ernie 4.5 MoE",
    "OLMoE, tied",
    "gpt-oss",
    "Llama 4 text, short chunks",
    "DeepSeek V3.2",
    "Mamba",
    "Qwen3-Next",
    "LFM2",
    "Qwen2.5-VL",
]
