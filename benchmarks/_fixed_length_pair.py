"""A pair whose responses all have one length, prompts for it, and its tokenizer of whole words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _random_pair import draw_matrices
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

EOS = "<eos>"
#: Length of EOS's embedding, and of each position's towards it or away: enough for a response that ends at
#: another length to be rarer than one in a million.
EOS_LENGTH, PULL = 3.0, 50.0


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """One token a word: `<eos>` and w1, w2, and so on; what is said is what is counted."""
    vocabulary = {EOS: 0} | {f"w{token_id}": token_id for token_id in range(1, vocab_size)}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=EOS).save_pretrained(directory)


def write_opt(
    directory: Path,
    *,
    seed: int,
    vocab_size: int,
    hidden_size: int,
    layers: int,
    prompt_tokens: int,
    response_tokens: int,
) -> int:
    """Write an fp32 OPT and its tokenizer; the number of its parameters.

    OPT has an embedding of each position, so one that is drawn at random can be made to end its responses
    after `response_tokens` tokens, EOS included, where prompts have `prompt_tokens`, and never before.
    """
    logging.disable_progress_bar()
    config = OPTConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        word_embed_proj_dim=hidden_size,
        ffn_dim=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        max_position_embeddings=prompt_tokens + response_tokens,
        dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        dtype="float32",
    )
    model: Any = OPTForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    draw_matrices(model, generator)
    with torch.no_grad():
        direction_D = torch.nn.functional.normalize(torch.randn(hidden_size, generator=generator), dim=0)
        decoder = model.model.decoder
        decoder.embed_tokens.weight[0] = EOS_LENGTH * direction_D
        position_L_D = decoder.embed_positions.weight[decoder.embed_positions.offset :]
        position_L_D -= PULL * direction_D
        position_L_D[prompt_tokens + response_tokens - 2] += 2 * PULL * direction_D
    model.save_pretrained(directory)
    write_tokenizer(directory, vocab_size)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def write_prompts(path: Path, *, seed: int, count: int, prompt_tokens: int, vocab_size: int) -> None:
    """Random prompts, each of `prompt_tokens` tokens."""
    id_N_T = np.random.default_rng(seed).integers(1, vocab_size, (count, prompt_tokens))
    rows = [{"prompt": " ".join(f"w{token_id}" for token_id in id_T)} for id_T in id_N_T.tolist()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
