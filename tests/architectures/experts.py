"""Mixtures of experts, and latent attention."""

from __future__ import annotations

from architectures.specimen import EXPERTS, GRANITE, LOCAL_EXPERTS, MLA, WINDOWS, YARN, Specimen
from checkpoints import HEAD_DIM, SLIDING_WINDOW

_ROUTED_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_GROUPS = {"n_group": 2, "topk_group": 1, "n_routed_experts": 8}


_LLAMA4 = {
    "intermediate_size_mlp": 128,
    "num_experts_per_tok": 1,
    "num_local_experts": 4,
    "no_rope_layers": [1, 0],
    "layer_types": ["chunked_attention", "full_attention"],
}


EXPERT_MODELS: dict[str, Specimen] = {
    "Llama 4 text": Specimen("llama4_text", "MoE, layers without rope", _LLAMA4),
    "Llama 4 text, scaled queries": Specimen(
        "llama4_text", "MoE, layers without rope", {**_LLAMA4, "floor_scale": 16}
    ),
    "Llama 4 text, short chunks": Specimen(
        "llama4_text", "MoE, chunked attention", {**_LLAMA4, "attention_chunk_size": 2 * HEAD_DIM}
    ),
    "Ernie 4.5 MoE": Specimen(
        "ernie4_5_moe",
        "MoE",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 64,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
        },
    ),
    "Hunyuan MoE": Specimen("hunyuan_v1_moe", "MoE", {"num_experts": 4, "moe_topk": 2}),
    "Hy 3": Specimen("hy_v3", "MoE", {**EXPERTS, "mlp_layer_types": ["dense", "sparse"]}),
    "Mixtral": Specimen("mixtral", "MoE", LOCAL_EXPERTS),
    "Mixtral, window": Specimen(
        "mixtral", "MoE, sliding window", {**LOCAL_EXPERTS, "sliding_window": SLIDING_WINDOW}
    ),
    "Qwen2 MoE": Specimen("qwen2_moe", "MoE", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "Qwen3 MoE": Specimen(
        "qwen3_moe", "MoE", {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    ),
    "OLMoE": Specimen("olmoe", "MoE", {"num_experts": 4, "num_experts_per_tok": 2}),
    "OLMoE, tied": Specimen(
        "olmoe", "MoE", {"num_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True}
    ),
    "FlexOlmo": Specimen("flex_olmo", "MoE", {"num_experts": 4, "num_experts_per_tok": 2}),
    "Phi-3.5 MoE": Specimen("phimoe", "MoE", LOCAL_EXPERTS),
    "gpt-oss": Specimen(
        "gpt_oss",
        "MoE, sliding window, rope variant",
        {
            **LOCAL_EXPERTS,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
            "rope_parameters": {
                **YARN,
                "rope_theta": 150000.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
    ),
    "Gemma 4 text, MoE": Specimen(
        "gemma4_text",
        "MoE, sliding window",
        {
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 2 * HEAD_DIM,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 64,
            "tie_word_embeddings": True,
        },
    ),
    "Granite MoE": Specimen("granitemoe", "MoE", {**GRANITE, **LOCAL_EXPERTS}),
    "Granite MoE, shared expert": Specimen(
        "granitemoeshared", "MoE", {**GRANITE, **LOCAL_EXPERTS, "shared_intermediate_size": 64}
    ),
    "GLM-4 MoE": Specimen(
        "glm4_moe",
        "MoE",
        {**_ROUTED_EXPERTS, "first_k_dense_replace": 1, "use_qk_norm": True, "head_dim": HEAD_DIM},
    ),
    "GLM-4 MoE Lite": Specimen(
        "glm4_moe_lite",
        "MoE, MLA",
        {**MLA, **_ROUTED_EXPERTS, "mlp_layer_types": ["dense", "sparse"], "first_k_dense_replace": 1},
    ),
    "GLM-5 (sparse attention)": Specimen(
        "glm_moe_dsa",
        "MoE, MLA, sparse attention",
        {
            **MLA,
            **_ROUTED_EXPERTS,
            "mlp_layer_types": ["dense", "sparse"],
            "index_topk": 64,
            "index_head_dim": 64,
            "index_n_heads": 2,
        },
    ),
    "EXAONE MoE": Specimen(
        "exaone_moe",
        "MoE, sliding window",
        {
            **EXPERTS,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    "DeepSeek V2": Specimen(
        "deepseek_v2",
        "MoE, MLA",
        {**MLA, **_ROUTED_EXPERTS, "first_k_dense_replace": 1, "n_shared_experts": 1},
    ),
    "DeepSeek V3": Specimen(
        "deepseek_v3",
        "MoE, MLA",
        {**MLA, **_ROUTED_EXPERTS, **_GROUPS, "topk_method": "noaux_tc", "first_k_dense_replace": 1},
    ),
    "DeepSeek V3.2": Specimen(
        "deepseek_v32",
        "MoE, MLA, sparse attention",
        {
            **MLA,
            **_ROUTED_EXPERTS,
            **_GROUPS,
            "mlp_layer_types": ["dense", "sparse"],
            "index_topk": 64,
            "index_head_dim": 64,
            "index_n_heads": 2,
        },
    ),
    "A.X K1": Specimen("axk1", "MoE, MLA", {**MLA, **_ROUTED_EXPERTS, **_GROUPS, "first_k_dense_replace": 1}),
    "MiniCPM3": Specimen("minicpm3", "MLA", {**MLA, "dim_model_base": 32}),
    "LongCat Flash": Specimen(
        "longcat_flash",
        "MoE, MLA",
        {
            **MLA,
            "num_layers": 2,
            "ffn_hidden_size": 128,
            "moe_topk": 2,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "expert_ffn_hidden_size": 64,
        },
    ),
    "dots1": Specimen("dots1", "MoE", {**_ROUTED_EXPERTS, "first_k_dense_replace": 1, "n_shared_experts": 1}),
    "DBRX": Specimen(
        "dbrx",
        "MoE",
        {
            "d_model": 64,
            "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
        },
    ),
    "MiniMax M2": Specimen("minimax_m2", "MoE", {**LOCAL_EXPERTS, "rotary_dim": HEAD_DIM}),
    "MiMo V2 Flash": Specimen(
        "mimo_v2_flash",
        "MoE, sliding window",
        {
            **_ROUTED_EXPERTS,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["full_attention", "sliding_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "v_head_dim": HEAD_DIM,
        },
    ),
    "Laguna": Specimen(
        "laguna",
        "MoE, sliding window",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 64,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["full_attention", "sliding_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "num_attention_heads_per_layer": [2, 2],
        },
    ),
    "Mellum": Specimen(
        "mellum",
        "MoE, sliding window",
        {
            **LOCAL_EXPERTS,
            "moe_intermediate_size": 64,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["full_attention", "sliding_attention"],
            "mlp_layer_types": ["sparse", "sparse"],
        },
    ),
    "AFMoE": Specimen(
        "afmoe",
        "MoE, sliding window",
        {
            **EXPERTS,
            "num_shared_experts": 1,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
        },
    ),
    "Solar Open": Specimen("solar_open", "MoE", {**_ROUTED_EXPERTS}),
    "Cohere 2 MoE": Specimen(
        "cohere2_moe",
        "MoE, sliding window",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "tie_word_embeddings": True,
            "logit_scale": 0.7,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    "Granite MoE, window": Specimen(
        "granitemoe_swa",
        "MoE, sliding window",
        {
            **GRANITE,
            **LOCAL_EXPERTS,
            "shared_intermediate_size": 64,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": WINDOWS,
            "layer_rope_theta": [10000.0, 10000.0],
        },
    ),
    "DeepSeek V4": Specimen(
        "deepseek_v4",
        "MoE, sparse attention",
        {
            **_ROUTED_EXPERTS,
            "q_lora_rank": 48,
            "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
            "mlp_layer_types": ["hash_moe", "moe"],
            "sliding_window": SLIDING_WINDOW,
            "o_groups": 2,
            "o_lora_rank": 32,
            "index_n_heads": 2,
            "index_head_dim": 64,
            "index_topk": 64,
        },
    ),
    "Hy 4": Specimen(
        "hy_v4",
        "MoE, MLA, sparse attention",
        {
            **MLA,
            **_ROUTED_EXPERTS,
            "mlp_layer_types": ["dense", "sparse"],
            "index_topk": 64,
            "index_head_dim": 64,
            "index_n_heads": 2,
            "indexer_types": ["full", "shared"],
        },
    ),
    "Inkling": Specimen(
        "inkling_text",
        "MoE, sliding window, hybrid, convolution",
        {
            **_ROUTED_EXPERTS,
            "n_shared_experts": 1,
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 1,
            "swa_head_dim": HEAD_DIM,
            "sliding_window_size": SLIDING_WINDOW,
            "layer_types": ["hybrid_sliding", "hybrid"],
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
}
