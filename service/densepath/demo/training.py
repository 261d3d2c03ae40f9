"""Pretraining and SFT of the demo's model: two plain loops over next-token cross-entropy."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from densepath.demo.recipe import Recipe
from densepath.demo.task import Example, draw

Weights = dict[str, Tensor]
Step = Callable[[int, int], None]  # steps done, steps in all

IGNORED = -100  # the label by which cross_entropy ignores a token


@dataclass(frozen=True)
class Sft:
    """The checkpoint at the validation minimum, and the checkpoint after half of its samples."""

    weights: Weights
    weights_half: Weights
    steps: int
    validation_loss: float  # nats per token, at `steps`
    validation_loss_base: float


def make_model(recipe: Recipe, tokenizer: Any) -> LlamaForCausalLM:
    """A new model with random weights from torch's global generator."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context_length,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=False,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def encode(examples: Iterable[Example], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Token ids and labels, int64 [N, T], padded on the right. Only the response and its EOS have labels."""
    rows, labels = [], []
    for item in examples:
        text = tokenizer.apply_chat_template(item.messages, add_generation_prompt=True, tokenize=False)
        prompt, response = (
            tokenizer.backend_tokenizer.encode(part, add_special_tokens=False).ids
            for part in (text, item.response)
        )
        response.append(tokenizer.eos_token_id)
        rows.append(prompt + response)
        labels.append([IGNORED] * len(prompt) + response)
    longest = max(map(len, rows))
    ids_N_T = torch.full((len(rows), longest), tokenizer.pad_token_id)
    label_N_T = torch.full((len(rows), longest), IGNORED)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        ids_N_T[i, : len(row)] = torch.tensor(row)
        label_N_T[i, : len(row)] = torch.tensor(label)
    return ids_N_T, label_N_T


def loss_of(model: LlamaForCausalLM, ids_N_T: Tensor, label_N_T: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled tokens, in nats per token. No token attends to the padding."""
    logit_N_T_V = model(ids_N_T, use_cache=False).logits[:, :-1]
    return cross_entropy(logit_N_T_V.flatten(0, 1), label_N_T[:, 1:].flatten(), ignore_index=IGNORED)


def pretrain(model: LlamaForCausalLM, recipe: Recipe, tokenizer: Any, rng: random.Random, step: Step) -> None:
    """Train `model` in place on new examples of the pretraining mixture: warm-up, then cosine to zero."""
    examples = draw(recipe.pretraining, rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.pretraining_rate, betas=(0.9, 0.95))
    model.train()
    for done in range(recipe.pretraining_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.pretraining_rate * _schedule(done, recipe)
        _update(model, optimizer, *encode(islice(examples, recipe.pretraining_batch), tokenizer))
        step(done + 1, recipe.pretraining_steps)
    model.eval()


def fine_tune(model: LlamaForCausalLM, recipe: Recipe, tokenizer: Any, rng: random.Random, step: Step) -> Sft:
    """SFT of `model`, in place, on imperfect demonstrations, until the validation loss stops falling.

    The checkpoint at the validation minimum is kept. The halfway checkpoint has seen half of its samples.
    """
    demonstrations = draw(recipe.demonstrations, rng)
    ids_N_T, label_N_T = encode(islice(demonstrations, recipe.training_demonstrations), tokenizer)
    validation = encode(islice(demonstrations, recipe.validation_demonstrations), tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.sft_rate, weight_decay=0.0)
    batches = _epochs(len(ids_N_T), recipe.sft_batch, torch.Generator().manual_seed(recipe.seed))
    snapshots: dict[int, Weights] = {}
    losses = {0: _validate(model, *validation)}
    best = recipe.validate_every
    for done in range(1, recipe.sft_steps + 1):
        row_N = next(batches)
        model.train()
        _update(model, optimizer, ids_N_T[row_N], label_N_T[row_N])
        step(done, recipe.sft_steps)
        if done % (recipe.validate_every // 2) == 0:
            snapshots[done] = _copy(model)
        if done % recipe.validate_every == 0:
            losses[done] = _validate(model, *validation)
            best = min(best, done, key=losses.__getitem__)
            if done - best >= recipe.patience * recipe.validate_every:
                break
    step(recipe.sft_steps, recipe.sft_steps)
    model.eval()
    return Sft(snapshots[best], snapshots[best // 2], best, losses[best], losses[0])


def _update(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ids_N_T: Tensor, label_N_T: Tensor
) -> None:
    loss = loss_of(model, ids_N_T, label_N_T)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    optimizer.step()


def _validate(model: LlamaForCausalLM, ids_N_T: Tensor, label_N_T: Tensor) -> float:
    with torch.inference_mode():
        return float(loss_of(model.eval(), ids_N_T, label_N_T))


def _schedule(done: int, recipe: Recipe) -> float:
    if done < recipe.warmup_steps:
        return (done + 1) / recipe.warmup_steps
    left = (done - recipe.warmup_steps) / max(1, recipe.pretraining_steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * left))


def _epochs(rows: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.split(torch.randperm(rows, generator=generator), batch)


def _copy(model: LlamaForCausalLM) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
