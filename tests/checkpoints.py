"""Tiny random checkpoints in Hugging Face form, for tests that need a real pair.

Weights are drawn wide enough that log-probabilities vary from token to token (two seeds differ by some
nats a token), norms are not all ones, and head_dim is 32, the least that the engine's kernels take.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

Architecture = Literal["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"]

HEAD_DIM = 32
CONTEXT_LENGTH = 1024
#: Shorter than most test sequences, so that what slides out of it shows.
SLIDING_WINDOW = 48

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CORPUS = [
    "the sum of two and three is five; the answer is five.",
    "What is the capital of France? The capital of France is Paris.",
    "a reward for every token of the response, and the response ends here.",
]
_EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": HEAD_DIM},
    "mistral": {"head_dim": HEAD_DIM, "sliding_window": SLIDING_WINDOW},
    "gemma2": {"head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM, "sliding_window": SLIDING_WINDOW},
    "gemma3_text": {
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": SLIDING_WINDOW,
    },
}


@cache
def make_tokenizer(vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds BOS, with EOS `<|end|>`, PAD `<|endoftext|>` and a chat template.

    Shared between callers: copy it (`copy.deepcopy`) before changing it.
    """
    special = ["<|endoftext|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", special.index("<|begin|>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_checkpoint(
    directory: Path | str,
    architecture: Architecture = "llama",
    *,
    tie: bool = False,
    seed: int = 0,
    hidden_size: int = 64,
    layers: int = 2,
    vocab_size: int = 320,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a random checkpoint and its tokenizer into `directory`, made where it is missing.

    `hidden_size` is a multiple of 32. `vocab_size` counts the embedding's rows; the default tokenizer has 300
    ids, so 20 rows are padding. Gemma is tied whatever `tie` says, as its published checkpoints are.
    """
    directory = Path(directory)
    tokenizer = tokenizer or make_tokenizer()
    model_type = "gemma3_text" if architecture == "gemma3" else architecture
    config = AutoConfig.for_model(
        model_type,
        **_EXTRA[model_type],
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // HEAD_DIM,
        num_key_value_heads=1,
        vocab_size=vocab_size,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=tie or architecture.startswith("gemma"),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if hasattr(config, "layer_types") and architecture.startswith("gemma"):
        config.layer_types = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    return write_checkpoint(directory, config, seed=seed, tokenizer=tokenizer, dtype=dtype)


def write_checkpoint(
    directory: Path,
    config: Any,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the causal model of a config with random weights, and the tokenizer, into `directory`."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    draw(model, seed)
    model.save_pretrained(directory)
    (tokenizer or make_tokenizer()).save_pretrained(directory)
    return directory


@torch.no_grad()
def draw(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        # Norms and states keep the mean that the architecture gives them; biases are near zero.
        if parameter.ndim == 1 or "A_log" in name or "correction_bias" in name:
            parameter.add_((0.1 * noise).to(parameter.dtype))
        else:
            std = 0.3 if "embed" in name or "lm_head" in name else 1.0 / parameter.shape[-1] ** 0.5
            parameter.copy_(std * noise)
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:  # of a router: part of the checkpoint, and zero before training
            buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
