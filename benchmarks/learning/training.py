"""Pretraining on a mixture of behaviours, and SFT with its checkpoints: two loops over cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from models import Model, Shape, Weights, copy_of, logprobs
from plan import Case
from tasks import Batch, Task

from densepath.demo.recipe import Mixture

CLIP = 1.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a seed's models. Steps are optimiser steps; rates are AdamW's."""

    shape: Shape = field(default_factory=Shape)
    pretraining: Mixture = field(default_factory=lambda: Mixture(0.20, 0.68, 0.06, 0.04, 0.02))
    pretraining_steps: int = 1100
    pretraining_batch: int = 64
    pretraining_rate: float = 3e-3  # AdamW's, of embeddings, norms, biases and head
    muon_rate: float = 4e-3  # of the layers' matrices
    warmup_steps: int = 50
    demonstrations: int = 2048
    validation: int = 256
    batch: int = 64
    sft_rate: float = 1e-4
    brief_steps: int = 64
    most_steps: int = 640  # of SFT until its validation minimum
    validate_every: int = 8
    patience: int = 4  # validations without a new minimum
    dpr_rate: float = 2e-4
    dpr_steps_share: float = 1.0  # of a case's DPR steps
    held_out: int = 600


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Random numbers of one purpose: no part's use of them changes another's."""
    return np.random.default_rng([seed, *purpose.encode()])


def update(model: Model, optimizers: Iterable[torch.optim.Optimizer], loss: torch.Tensor) -> None:
    """One clipped step; raises RuntimeError where the gradient is not finite."""
    model.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, error_if_nonfinite=True)
    for optimizer in optimizers:
        optimizer.step()


def optimizer_of(model: Model, rate: float) -> torch.optim.AdamW:
    """A fresh AdamW without weight decay."""
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)


def loss_of(model: Model, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the response tokens, nats a token."""
    logp_N_R = logprobs(model, torch.from_numpy(batch.ids_N_PR), batch.prompt_length)
    return -logp_N_R[torch.from_numpy(batch.mask_N_R)].mean()


def pretrain(task: Task, recipe: Recipe, seed: int) -> Model:
    """A model of the whole mixture: warm-up, then cosine to zero, on fresh examples.

    Muon moves the layers' matrices: on one core it comes as far as AdamW does with twice the steps.
    """
    torch.manual_seed(seed)
    model = Model(task, recipe.shape)
    matrices = [weight for weight in model.layers.parameters() if weight.ndim == 2]
    names = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in names]
    optimizers: dict[torch.optim.Optimizer, float] = {
        torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"): recipe.muon_rate,
        torch.optim.AdamW(others, betas=(0.9, 0.95), fused=True): recipe.pretraining_rate,
    }
    rng = stream(seed, "pretraining")
    for done in range(recipe.pretraining_steps):
        for optimizer, rate in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(done, recipe)
        batch = task.draw(recipe.pretraining_batch, recipe.pretraining, rng)
        update(model, optimizers, loss_of(model, batch))
    return model


def _schedule(done: int, recipe: Recipe) -> float:
    if done < recipe.warmup_steps:
        return (done + 1) / recipe.warmup_steps
    left = (done - recipe.warmup_steps) / max(1, recipe.pretraining_steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * left))


@dataclass(frozen=True)
class Sft:
    """An SFT run: its weights by share of its samples, from the base model at 0 to SFT itself at 1."""

    weights: dict[float, Weights]
    demonstrations: Batch
    steps: int
    validation_loss: dict[int, float]  # by step, nats a token

    @property
    def last(self) -> Weights:
        """SFT itself."""
        return self.weights[1.0]


def batches(demonstrations: Batch, size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
    """Batches of shuffled epochs, without end; `skip` of them are passed over, as already trained on."""
    rng = stream(seed, "order of demonstrations")
    count = 0
    while True:
        order = rng.permutation(len(demonstrations.ids_N_PR))
        for start in range(0, len(order) - size + 1, size):
            count += 1
            if count > skip:
                row_N = order[start : start + size]
                yield Batch(demonstrations.ids_N_PR[row_N], demonstrations.mask_N_R[row_N])


def fine_tune(task: Task, base: Weights, case: Case, recipe: Recipe, seed: int) -> Sft:
    """SFT of the base model: for the brief number of steps, or until its validation loss stops falling."""
    rng = stream(seed, f"demonstrations {case.name}")
    demonstrations = task.draw(recipe.demonstrations, case.demonstrations, rng)
    validation = task.draw(recipe.validation, case.demonstrations, rng)
    model = Model(task, recipe.shape)
    model.load_state_dict(base)
    optimizer = optimizer_of(model, recipe.sft_rate)
    order = batches(demonstrations, recipe.batch, seed)
    snapshots = {0: copy_of(model)}
    losses = {0: _validate(model, validation)}
    most = recipe.most_steps if case.stops_at_minimum else recipe.brief_steps
    for done in range(1, most + 1):
        update(model, [optimizer], loss_of(model, next(order)))
        if done % (recipe.validate_every // 4) == 0:
            snapshots[done] = copy_of(model)
        if done % recipe.validate_every == 0:
            losses[done] = _validate(model, validation)
            best = min(losses, key=losses.__getitem__)
            if case.stops_at_minimum and done - best >= recipe.patience * recipe.validate_every:
                break
    last = max(recipe.validate_every, best) if case.stops_at_minimum else most
    shares = {share: snapshots[int(last * share)] for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    return Sft(shares, demonstrations, last, losses)


def _validate(model: Model, validation: Batch) -> float:
    with torch.inference_mode():
        return float(loss_of(model, validation))


def shortened(recipe: Recipe) -> Recipe:
    """A recipe of seconds: it shows that everything runs, and nothing else."""
    return replace(
        recipe,
        shape=Shape(32, 1, 2),
        pretraining_steps=30,
        pretraining_batch=32,
        warmup_steps=5,
        demonstrations=128,
        validation=64,
        brief_steps=8,
        most_steps=16,
        held_out=64,
        dpr_steps_share=0.02,
    )
