"""Tiny random checkpoints of any architecture, from the fields of its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from checkpoints import make_tokenizer, write_checkpoint

BASE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 320,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
#: Two of its layers have a state in the place of keys and values.
HYBRID = {
    "num_hidden_layers": 2,
    "layer_types": ["mamba", "attention"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 64,
}


def make_other(directory: Path, model_type: str, *, seed: int = 0, **fields: Any) -> Path:
    """Write a random fp32 checkpoint of a transformers model type, and the tests' tokenizer."""
    tokenizer = make_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(model_type, **(BASE | ids | fields))
    return write_checkpoint(directory, config, seed=seed)
