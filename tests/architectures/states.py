"""Models with a state in place of attention, in all layers or in some."""

from __future__ import annotations

from architectures.specimen import EXPERTS, GRANITE, LOCAL_EXPERTS, MLA, Specimen
from checkpoints import CONTEXT_LENGTH, HEAD_DIM, SLIDING_WINDOW

_MAMBA_OF_GRANITE = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_chunk_size": 64,
}
_LINEAR_ATTENTION = {
    "linear_key_head_dim": HEAD_DIM,
    "linear_value_head_dim": HEAD_DIM,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
#: As published: sections for images, which a text model does not use.
_MROPE = {
    "rope_type": "default",
    "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
    "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
}
_NEMOTRON_H = {
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
    "ssm_state_size": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "n_groups": 1,
    "chunk_size": 64,
}


STATE_MODELS: dict[str, Specimen] = {
    "Qwen3-Next": Specimen(
        "qwen3_next",
        "hybrid, linear attention, MoE",
        {**_LINEAR_ATTENTION, **EXPERTS, "shared_expert_intermediate_size": 64},
    ),
    "Qwen3.5": Specimen(
        "qwen3_5_text", "hybrid, linear attention", {**_LINEAR_ATTENTION, "rope_parameters": _MROPE}
    ),
    "Qwen3.5 MoE": Specimen(
        "qwen3_5_moe_text",
        "hybrid, linear attention, MoE",
        {**_LINEAR_ATTENTION, **EXPERTS, "shared_expert_intermediate_size": 64},
    ),
    "OLMo hybrid": Specimen("olmo_hybrid", "hybrid, linear attention", _LINEAR_ATTENTION),
    "Granite hybrid": Specimen(
        "granitemoehybrid",
        "hybrid, Mamba 2, MoE",
        {
            **GRANITE,
            **LOCAL_EXPERTS,
            **_MAMBA_OF_GRANITE,
            "shared_intermediate_size": 64,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "Nemotron-H": Specimen("nemotron_h", "hybrid, Mamba 2", _NEMOTRON_H),
    "Nemotron-H, small time steps": Specimen(
        "nemotron_h", "hybrid, Mamba 2", {**_NEMOTRON_H, "time_step_min": 1e-9}
    ),
    "MiniMax": Specimen(
        "minimax",
        "hybrid, linear attention, MoE",
        {**LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 64},
    ),
    "Mamba": Specimen("mamba", "state space", {"state_size": 16, "time_step_rank": 8}),
    "Mamba 2": Specimen(
        "mamba2",
        "state space",
        {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 64},
    ),
    "Falcon Mamba": Specimen("falcon_mamba", "state space", {"state_size": 16, "time_step_rank": 8}),
    "Falcon-H1": Specimen(
        "falcon_h1",
        "hybrid, Mamba 2",
        {
            "mamba_d_ssm": 128,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_chunk_size": 64,
        },
    ),
    "Jamba": Specimen(
        "jamba",
        "hybrid, Mamba, MoE",
        {
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    "Bamba": Specimen(
        "bamba",
        "hybrid, Mamba 2",
        {**_MAMBA_OF_GRANITE, "attn_layer_indices": [1]},
    ),
    "Zamba2": Specimen(
        "zamba2",
        "hybrid, Mamba 2, shared attention",
        {
            "layers_block_type": ["linear_attention", "hybrid"],
            "n_mamba_heads": 4,
            "mamba_d_state": 16,
            "chunk_size": 64,
            "adapter_rank": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,  # twice the hidden size, over the heads, as published
        },
    ),
    "LFM2": Specimen(
        "lfm2",
        "hybrid, convolution",
        {
            "layer_types": ["conv", "full_attention"],
            "block_multiple_of": 32,
            "conv_dim": 64,
            "block_dim": 64,
            "tie_word_embeddings": True,
        },
    ),
    "LFM2 MoE": Specimen(
        "lfm2_moe",
        "hybrid, convolution, MoE",
        {
            **EXPERTS,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "LFM2 MoE, untied": Specimen(
        "lfm2_moe",
        "hybrid, convolution, MoE",
        {**EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    "RecurrentGemma": Specimen(
        "recurrent_gemma",
        "hybrid, recurrence",
        {"block_types": ["recurrent", "attention"], "attention_window_size": SLIDING_WINDOW, "lru_width": 64},
    ),
    "Kimi Linear": Specimen(
        "kimi_linear",
        "hybrid, linear attention, MLA, MoE",
        {
            **MLA,
            "q_lora_rank": None,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "moe_intermediate_size": 64,
            "mlp_layer_types": ["dense", "sparse"],
            "layer_types": ["linear_attention", "full_attention"],
            "linear_head_dim": 32,
            "linear_num_heads": 2,
        },
    ),
    "RWKV": Specimen("rwkv", "recurrence", {"context_length": CONTEXT_LENGTH}),
    "Qwen4 Exp": Specimen(
        "qwen4_exp_text",
        "hybrid, linear attention, sparse attention, MoE",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 64,
            "linear_key_head_dim": HEAD_DIM,
            "linear_value_head_dim": HEAD_DIM,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "layer_types": ["linear_attention", "indexed_attention"],
            "hc_lowrank": 16,
            "ple_embed_dim": 32,
            "ngram_vocab_size_base": 1000,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 64,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        },
    ),
}
