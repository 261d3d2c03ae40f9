"""Random pairs, made on the machine that scores them, and what is scored under them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from _fixed_length_pair import write_tokenizer
from _random_pair import draw_matrices
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from densepath.sequences import Sequence, from_response

Architecture = Literal["llama", "qwen3", "mistral"]


@dataclass(frozen=True)
class Size:
    """How large a pair is, and its sequences. Lengths are in tokens."""

    hidden_size: int
    layers: int
    head_dim: int
    vocab_size: int
    sliding_window: int  # Mistral's alone; shorter than most sequences
    context_length: int
    singles: int
    rollouts: int  # of each of two prompts


SMALL = Size(1024, 8, 64, 32000, 64, 1024, singles=10, rollouts=8)
TINY = Size(64, 2, 32, 320, 48, 256, singles=4, rollouts=4)


def write_pair(root: Path, architecture: Architecture, size: Size, device: str) -> tuple[Path, Path]:
    """The directories of two fp32 checkpoints of different seeds."""
    logging.disable_progress_bar()
    more = {"sliding_window": size.sliding_window} if architecture == "mistral" else {}
    directories = (root / architecture / "sft", root / architecture / "reference")
    for seed, directory in enumerate(directories):
        config = AutoConfig.for_model(
            architecture,
            hidden_size=size.hidden_size,
            intermediate_size=3 * size.hidden_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.hidden_size // size.head_dim,
            num_key_value_heads=size.hidden_size // size.head_dim // 2,
            head_dim=size.head_dim,
            vocab_size=size.vocab_size,
            max_position_embeddings=size.context_length,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            dtype="float32",
            **more,
        )
        with torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(config)
        draw_matrices(model, torch.Generator(device).manual_seed(seed))
        model.save_pretrained(directory)
        write_tokenizer(directory, size.vocab_size)
    return directories


def ragged(size: Size) -> list[Sequence]:
    """Single sequences of many lengths, the longest as long as the context, then rollouts of two prompts."""
    rng = np.random.default_rng(5)

    def ids(count: int) -> Any:
        return rng.integers(0, size.vocab_size, count)

    lengths = np.linspace(17, size.context_length, size.singles).astype(int)
    singles = [
        from_response(*np.split(ids(length), [int(rng.integers(1, length - 2))])) for length in lengths
    ]
    prompts = [ids(size.context_length // 4) for _ in range(2)]
    rollouts = [
        from_response(prompt, ids(int(rng.integers(size.context_length // 16, size.context_length // 8))))
        for prompt in prompts
        for _ in range(size.rollouts)
    ]
    return [*singles, *rollouts]


def crowd(size: Size) -> list[Sequence]:
    """Long responses of many prompts at once: more than a small cache holds."""
    rng = np.random.default_rng(3)
    return [
        from_response(rng.integers(0, size.vocab_size, 20), rng.integers(0, size.vocab_size, int(length)))
        for length in rng.integers(150, 236, 24)
    ]
