"""Tiny random models of text and images in Hugging Face form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from checkpoints import CONTEXT_LENGTH, HEAD_DIM, SLIDING_WINDOW, draw, make_tokenizer

_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEAD_DIM,
    "global_head_dim": HEAD_DIM,
    "query_pre_attn_scalar": HEAD_DIM,
    "vocab_size": 320,
    "max_position_embeddings": CONTEXT_LENGTH,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 32,
    "num_kv_shared_layers": 0,
    "intermediate_size_mlp": 128,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 64,
    "image_size": 28,
    "patch_size": 14,
    "vision_output_dim": 32,
    "projector_output_dim": 32,
    "projector_input_dim": 32,
}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": SLIDING_WINDOW}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
#: Model type → fields of its language model that the others do not have.
WHOLE_MODELS: dict[str, dict[str, Any]] = {
    "exaone4_5": _WINDOWS,
    "gemma3": _WINDOWS,
    "gemma4": _WINDOWS,
    "idefics3": {},
    "internvl": {},
    "llama4": {
        "num_experts_per_tok": 1,
        "num_local_experts": 4,
        "no_rope_layers": [1, 0],
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "llava": {},
    "llava_next": {},
    "llava_onevision": {},
    "mistral3": {"sliding_window": SLIDING_WINDOW},
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": _MROPE,
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR | _EXPERTS,
    "qwen3_vl": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e5,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        }
    },
    "smolvlm": {},
}


def make_whole_model(directory: Path, model_type: str, *, seed: int = 0) -> Path:
    """Write a random fp32 model of text and images, and the tests' tokenizer, into `directory`."""
    default = AutoConfig.for_model(model_type)
    text = default.get_text_config()
    vision = default.to_dict()["vision_config"] or AutoConfig.for_model(f"{model_type}_vision").to_dict()
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        model_type,
        text_config={
            **{name: value for name, value in _TEXT.items() if name in text.to_dict()},
            **WHOLE_MODELS.get(model_type, {}),
            "model_type": text.model_type,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={name: value for name, value in _VISION.items() if name in vision}
        | {"model_type": vision["model_type"]},
        **({"image_token_id": 300} if hasattr(default, "image_token_id") else {}),
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    draw(model, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
