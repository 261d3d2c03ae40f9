"""A Llama of random weights, of the size that a benchmark asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging


def write_llama(directory: Path, *, seed: int, vocab_size: int, hidden_size: int, layers: int) -> int:
    """Write an fp32 checkpoint with tied embeddings; the number of its parameters.

    Matrices keep a unit variance through the layers, and the logits spread over some nats, so that a wrong
    row or a wrong model shows in every token.
    """
    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 23 // 8,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        dtype="float32",
    )
    model: Any = LlamaForCausalLM(config)
    draw_matrices(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(directory)
    return int(sum(parameter.numel() for parameter in model.parameters()))


@torch.no_grad()
def draw_matrices(model: Any, generator: torch.Generator) -> None:
    """Draw every matrix: unit variance through the layers, embeddings narrower."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.05 if "embed" in name else parameter.shape[1] ** -0.5
            parameter.normal_(0.0, std, generator=generator)
