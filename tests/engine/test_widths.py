"""A model's hidden states may have another width than its layers: OPT-350m projects them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from checkpoints import make_tokenizer

from .test_vllm_pair import TOLERANCE, largest_difference, offline, oracle, workload

pytestmark = pytest.mark.engine


def write_opt(directory: Path, *, seed: int, width: int) -> Path:
    config = OPTConfig(
        vocab_size=320,
        hidden_size=128,
        word_embed_proj_dim=width,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        do_layer_norm_before=width == 128,
        dropout=0.0,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = OPTForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("sft", "reference"), [(64, 64), (64, 128)])
def test_each_head_reads_the_states_of_its_own_model(sft: int, reference: int, tmp_path: Path) -> None:
    pair = (
        write_opt(tmp_path / "sft", seed=1, width=sft),
        write_opt(tmp_path / "reference", seed=2, width=reference),
    )
    sequences = workload(300)
    with offline(*pair) as engine:
        got = engine.score(sequences)
    assert largest_difference(got, oracle(*pair, sequences)) <= TOLERANCE
