"""Dense models: windows, rope variants, learned positions, alibi."""

from __future__ import annotations

from typing import Any

from architectures.specimen import GRANITE, ORIGINAL_CONTEXT, WINDOWS, YARN, Specimen
from checkpoints import CONTEXT_LENGTH, HEAD_DIM, SLIDING_WINDOW

_HALVES = HEAD_DIM // 2
_GEMMA = {"query_pre_attn_scalar": HEAD_DIM, "tie_word_embeddings": True}
_GEMMA3 = {**_GEMMA, "sliding_window": SLIDING_WINDOW, "layer_types": WINDOWS}
_GEMMA3N = {
    "intermediate_size": [128, 128],
    "sliding_window": SLIDING_WINDOW,
    "layer_types": WINDOWS,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 32,
    "num_kv_shared_layers": 0,
    "laurel_rank": 16,
    "activation_sparsity_pattern": [0.95, 0.0],
    "tie_word_embeddings": True,
}
_GPT2 = {"n_inner": 128}


def _rope(kind: str, **parameters: Any) -> Specimen:
    return Specimen("llama", kind, {"rope_parameters": {"rope_theta": 10000.0, **parameters}})


def _long_rope() -> dict[str, Any]:
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "short_factor": [1 + 0.02 * i for i in range(_HALVES)],
        "long_factor": [1 + 0.3 * i for i in range(_HALVES)],
    }
    return {"original_max_position_embeddings": ORIGINAL_CONTEXT, "rope_parameters": parameters}


DENSE_MODELS: dict[str, Specimen] = {
    "Llama": Specimen("llama", "dense"),
    "Llama, tied": Specimen("llama", "dense", {"tie_word_embeddings": True}),
    "Llama, biases": Specimen("llama", "dense", {"attention_bias": True, "mlp_bias": True}),
    "Llama, head size 16": Specimen("llama", "dense", {"head_dim": 16}),
    "Llama, head size 48": Specimen("llama", "dense", {"head_dim": 48}),
    "Llama, llama3 rope": _rope(
        "rope variant",
        rope_type="llama3",
        factor=4.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=ORIGINAL_CONTEXT,
    ),
    "Llama, yarn rope": _rope("rope variant", **YARN),
    "Llama, linear rope": _rope("rope variant", rope_type="linear", factor=4.0),
    "Llama, dynamic rope": _rope("rope variant", rope_type="dynamic", factor=4.0),
    "CWM": Specimen("cwm", "sliding window", {"sliding_window": SLIDING_WINDOW, "layer_types": WINDOWS}),
    "Arcee": Specimen("arcee", "dense"),
    "SmolLM3": Specimen("smollm3", "layers without rope", {"no_rope_layers": [1, 0]}),
    "Seed-OSS": Specimen("seed_oss", "dense"),
    "Helium": Specimen("helium", "dense"),
    "HyperCLOVA X": Specimen("hyperclovax", "dense", GRANITE),
    "Jais 2": Specimen("jais2", "dense"),
    "Ernie 4.5": Specimen("ernie4_5", "dense"),
    "Hunyuan dense": Specimen("hunyuan_v1_dense", "dense"),
    "Mistral": Specimen("mistral", "sliding window", {"sliding_window": SLIDING_WINDOW}),
    "Mistral, no window": Specimen("mistral", "dense", {"sliding_window": None}),
    "Ministral": Specimen(
        "ministral", "sliding window", {"sliding_window": SLIDING_WINDOW, "layer_types": WINDOWS}
    ),
    "Ministral 3": Specimen(
        "ministral3",
        "rope variant",
        {
            "rope_parameters": {
                **YARN,
                "rope_theta": 10000.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    "Qwen2": Specimen("qwen2", "dense"),
    "Qwen2, windows on some layers": Specimen(
        "qwen2",
        "sliding window",
        {"use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "max_window_layers": 1},
    ),
    "Qwen2, windows on all layers": Specimen(
        "qwen2",
        "sliding window",
        {"use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "max_window_layers": 0},
    ),
    "Qwen3": Specimen("qwen3", "dense"),
    "Qwen3, tied": Specimen("qwen3", "dense", {"tie_word_embeddings": True}),
    "Qwen3, windows on some layers": Specimen(
        "qwen3",
        "sliding window",
        {"use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "max_window_layers": 1},
    ),
    "OLMo": Specimen("olmo", "dense"),
    "OLMo 2": Specimen("olmo2", "dense"),
    "OLMo 3": Specimen("olmo3", "sliding window", {"sliding_window": SLIDING_WINDOW, "layer_types": WINDOWS}),
    "Phi": Specimen("phi", "dense"),
    "Phi-3": Specimen("phi3", "dense"),
    "Phi-3, window": Specimen("phi3", "sliding window", {"sliding_window": SLIDING_WINDOW}),
    "Phi-3, LongRoPE": Specimen(
        "phi3",
        "rope variant",
        _long_rope(),
        fixed="the factors of LongRoPE are chosen by the length of each sequence, as transformers does",
    ),
    "GPT-2": Specimen("gpt2", "learned positions", _GPT2),
    "GPT-BigCode": Specimen("gpt_bigcode", "learned positions, one key head", _GPT2),
    "GPT-J": Specimen("gptj", "dense", {**_GPT2, "rotary_dim": 16}),
    "GPT-NeoX": Specimen("gpt_neox", "dense"),
    "GPT-NeoX, sequential": Specimen("gpt_neox", "dense", {"use_parallel_residual": False}),
    "GPT-Neo": Specimen(
        "gpt_neo",
        "local attention",
        {"attention_types": [[["global", "local"], 1]], "window_size": SLIDING_WINDOW, "num_layers": 2},
    ),
    "StableLM": Specimen("stablelm", "dense", {"use_qkv_bias": True}),
    "Starcoder2": Specimen("starcoder2", "sliding window", {"sliding_window": SLIDING_WINDOW}),
    "OPT": Specimen("opt", "learned positions", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "Falcon": Specimen("falcon", "dense, one key head", {"ffn_hidden_size": 256}),
    "Falcon, new decoder": Specimen(
        "falcon",
        "dense",
        {"ffn_hidden_size": 256, "new_decoder_architecture": True, "num_kv_heads": 1},
    ),
    "Falcon, alibi": Specimen("falcon", "alibi", {"ffn_hidden_size": 256, "alibi": True}),
    "BLOOM": Specimen("bloom", "alibi", {"seq_length": CONTEXT_LENGTH, "tie_word_embeddings": True}),
    "MPT": Specimen(
        "mpt", "alibi", {"d_model": 64, "n_heads": 2, "n_layers": 2, "max_seq_len": CONTEXT_LENGTH}
    ),
    "Persimmon": Specimen("persimmon", "dense"),
    "XGLM": Specimen("xglm", "learned positions", {"ffn_dim": 128}),
    "Cohere": Specimen("cohere", "dense", {"tie_word_embeddings": True, "logit_scale": 0.7}),
    "Cohere, untied": Specimen("cohere", "dense", {"logit_scale": 0.7}),
    "Cohere, query and key norms": Specimen(
        "cohere", "dense", {"tie_word_embeddings": True, "logit_scale": 0.7, "use_qk_norm": True}
    ),
    "Cohere 2": Specimen(
        "cohere2",
        "sliding window",
        {
            "tie_word_embeddings": True,
            "logit_scale": 0.7,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
        },
    ),
    "Cohere 2, untied, no window": Specimen(
        "cohere2", "dense", {"logit_scale": 0.7, "layer_types": ["full_attention", "full_attention"]}
    ),
    "Gemma": Specimen("gemma", "dense", {"tie_word_embeddings": True}),
    "Gemma, untied": Specimen("gemma", "dense"),
    "Gemma 2": Specimen("gemma2", "sliding window, soft caps", _GEMMA3),
    "Gemma 3 text": Specimen("gemma3_text", "sliding window", _GEMMA3),
    "Gemma 3 text, bidirectional": Specimen(
        "gemma3_text", "attention in both directions", {**_GEMMA3, "use_bidirectional_attention": True}
    ),
    "Gemma 3 text, linear rope": Specimen(
        "gemma3_text",
        "sliding window, rope variant",
        {
            **_GEMMA3,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
        },
    ),
    "Gemma 3n text": Specimen("gemma3n_text", "sliding window, inputs per layer", _GEMMA3N),
    "Gemma 4 text": Specimen(
        "gemma4_text",
        "sliding window, inputs per layer",
        {
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
            "vocab_size_per_layer_input": 320,
            "hidden_size_per_layer_input": 32,
            "global_head_dim": 2 * HEAD_DIM,
            "tie_word_embeddings": True,
        },
    ),
    "VaultGemma": Specimen(
        "vaultgemma",
        "sliding window",
        {**_GEMMA3},
    ),
    "Granite": Specimen("granite", "dense", GRANITE),
    "Granite, window": Specimen(
        "granite_swa",
        "sliding window",
        {
            **GRANITE,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
            "layer_rope_theta": [10000.0, 10000.0],
        },
    ),
    "GLM": Specimen("glm", "dense"),
    "GLM-4": Specimen("glm4", "dense"),
    "EXAONE 4": Specimen(
        "exaone4", "sliding window", {"sliding_window": SLIDING_WINDOW, "layer_types": WINDOWS}
    ),
    "Nemotron": Specimen("nemotron", "dense"),
    "Apertus": Specimen("apertus", "xIELU activation"),
}
