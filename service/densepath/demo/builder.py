"""Builds the demo: pretrains, fine-tunes, keeps three checkpoints, and measures what their rewards show."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging

from densepath.demo.evaluation import evaluate
from densepath.demo.recipe import REFERENCE_BASE, REFERENCE_HALF, SFT, ProgressFn, Recipe
from densepath.demo.task import Example, held_out
from densepath.demo.tokenizer import make_tokenizer
from densepath.demo.training import Sft, fine_tune, make_model, pretrain

#: The number of threads changes the order of sums, and with it the last bits of the weights. On busy cores
#: threads also wait for each other: a tiny build took 14 s with two threads and 0.6 s with one.
_THREADS = 1


def build_into(folder: Path, recipe: Recipe, progress: ProgressFn) -> tuple[list[Example], dict[str, Any]]:
    """Write the three checkpoints under `folder`. Returns the held-out examples and the measurements.

    All random numbers come from `recipe.seed`, and the same machine writes the same bits. Meanwhile torch
    runs with one thread. Its global generator is restored afterwards.
    """
    tokenizer = make_tokenizer()
    seconds: dict[str, float] = {}
    with _alone():
        with _timed("pretraining", seconds):
            model = _pretrained(recipe, tokenizer, progress)
        weights_base = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        with _timed("fine-tuning", seconds):
            rng = random.Random(f"demonstrations {recipe.seed}")  # noqa: S311
            sft = fine_tune(model, recipe, tokenizer, rng, partial(progress, "fine-tuning"))
        weights = {SFT: sft.weights, REFERENCE_HALF: sft.weights_half, REFERENCE_BASE: weights_base}
        for name, of_model in weights.items():
            model.load_state_dict(of_model)
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        examples = held_out(recipe.held_out, random.Random(f"held out {recipe.seed}"))  # noqa: S311
        with _timed("measuring", seconds):
            found = evaluate(model, weights, examples, tokenizer, recipe, partial(progress, "measuring"))
    return examples, {
        "parameters": model.num_parameters(),
        "seconds": seconds,
        "sft": _describe(sft, recipe),
        **found,
    }


def build_base_into(folder: Path, recipe: Recipe, progress: ProgressFn) -> None:
    """Write only the base model, which `build_into` fine-tunes, into `folder`."""
    tokenizer = make_tokenizer()
    with _alone():
        _pretrained(recipe, tokenizer, progress).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pretrained(recipe: Recipe, tokenizer: Any, progress: ProgressFn) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, tokenizer)
    rng = random.Random(f"pretraining {recipe.seed}")  # noqa: S311
    pretrain(model, recipe, tokenizer, rng, partial(progress, "pretraining"))
    return model


@contextmanager
def _alone() -> Iterator[None]:
    """One thread and no progress bars of transformers; afterwards torch's global generator is restored."""
    with _threads(_THREADS), _no_bars(), torch.random.fork_rng(devices=[]):
        yield


def _describe(sft: Sft, recipe: Recipe) -> dict[str, float]:
    return {
        "steps": sft.steps,
        "samples": sft.steps * recipe.sft_batch,
        "half_samples": sft.steps // 2 * recipe.sft_batch,
        "validation_loss": sft.validation_loss,
        "validation_loss_base": sft.validation_loss_base,
    }


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_bars() -> Iterator[None]:
    # save_pretrained would draw its own progress bar over the caller's.
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
