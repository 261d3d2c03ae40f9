"""A tiny config of an architecture, small enough that the whole matrix is run on two cores.

A config states what the model's own defaults would hide: windows shorter than the sequences, multipliers that
are not 1, an original context inside the context, more experts than are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from checkpoints import CONTEXT_LENGTH, HEAD_DIM, make_tokenizer

#: Within the context, so that sequences lie on both sides of it.
ORIGINAL_CONTEXT = 256

#: Begins the kind of a model of text and images.
HALF = "text half"

#: What several tables share.
WINDOWS = ["sliding_attention", "full_attention"]
MLA = {
    "q_lora_rank": 48,
    "kv_lora_rank": 512,  # this and the next as published: no other size has kernels
    "qk_rope_head_dim": 64,
    "head_dim": 64,
    "qk_nope_head_dim": HEAD_DIM,
    "v_head_dim": HEAD_DIM,
    "num_key_value_heads": 2,
}
GRANITE = {
    "embedding_multiplier": 1.5,
    "logits_scaling": 0.8,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.25,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}


@dataclass(frozen=True)
class Specimen:
    """One architecture in miniature: what transformers builds from `model_type` and `config`."""

    model_type: str
    kind: str  # what sets it apart, in a few words
    config: Mapping[str, Any] = field(default_factory=dict)
    fixed: str = ""  # what densepath does so that vLLM's numbers are right

    @property
    def whole(self) -> bool:
        """Whether it is a model of text and images."""
        return self.kind.startswith(HALF)

    @property
    def class_name(self) -> str:
        """The class that transformers has for it."""
        classes = (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if self.whole else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        )
        return classes[self.model_type]


#: What a config takes and does not list as its own, or what published configs have beside it.
_EXTRA = {
    "seq_length",
    "global_head_dim",
    "head_dim",
    "rotary_dim",
    "first_k_dense_replace",
    "topk_method",
    "conv_dim",
    "block_dim",
}
_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEAD_DIM,
    "vocab_size": 320,
    "max_position_embeddings": CONTEXT_LENGTH,
    "tie_word_embeddings": False,
}


def make_config(specimen: Specimen) -> Any:
    """The config that transformers makes of a specimen. A field that its class does not know is an error."""
    default = AutoConfig.for_model(specimen.model_type)
    known = {*default.to_dict(), *default.attribute_map, "tie_word_embeddings"}
    unknown = specimen.config.keys() - known - _EXTRA
    if unknown:
        raise ValueError(f"{specimen.model_type} has no {sorted(unknown)}")
    tokenizer = make_tokenizer()
    return AutoConfig.for_model(
        specimen.model_type,
        **{name: value for name, value in _BASE.items() if name in known} | specimen.config,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
