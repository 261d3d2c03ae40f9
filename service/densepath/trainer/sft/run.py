"""`densepath sft`: supervised fine-tuning that also saves the checkpoints that can be a reference.

TRL does the training. This module adds checkpoints at shares of the samples that the final checkpoint has
seen, and the base model with the tokenizer of the SFT. Each of them is a pair with the final checkpoint.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence as ListLike
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import set_seed

from densepath.errors import InvalidRequestError
from densepath.file_errors import naming
from densepath.files import require_free, reserved_directory
from densepath.pair.checkpoint import WholeCheckpoint, require_checkpoint
from densepath.pair.runs import BASE, FINAL, SftRun, read_sft_run
from densepath.sequences import Sequence
from densepath.trainer.quiet import quiet_libraries
from densepath.trainer.sft.data import Ordered, order
from densepath.trainer.sft.demonstrations import Demonstrations, read_demonstrations, split, to_columns
from densepath.trainer.sft.directory import SNAPSHOTS, finish, make_manifest, share_name
from densepath.trainer.sft.models import load_tokenizer, load_trainable, write_checkpoint
from densepath.trainer.sft.settings import SftSettings
from densepath.trainer.sft.snapshots import Snapshots, steps_at
from densepath.trainer.sft.trl import Sft
from densepath.trainer.sft.watch import Watch

_LONGEST = 2048  # tokens, if --max-length is not given
_LOG_ROWS = 200  # the least, if a run has so many steps and does not validate


def fine_tune(settings: SftSettings, say: Console) -> SftRun:
    """Make a run directory. A run that is killed leaves a directory that does not count as a run.

    Raises InvalidRequestError, before anything is written, if the settings, the base model or the
    demonstrations are wrong, and at the end, if SFT never has a lower validation loss than the base model;
    NonFiniteStepError if a loss is not finite.
    """
    if settings.run.exists():
        require_free(settings.run)
        raise InvalidRequestError(f"--run {settings.run} exists: give a new directory, or remove this one")
    with reserved_directory(settings.run), naming(settings.run), quiet_libraries():
        _fill(settings, say)
    return read_sft_run(settings.run)


def _fill(settings: SftSettings, say: Console) -> None:
    base = _check(settings)
    max_length = settings.max_length or min(base.config.context_length, _LONGEST)
    demonstrations = _read(settings, base.tokenizer.loaded, max_length, say)
    ordered = order(demonstrations.learned, max_length, settings)
    snapshots = _plan(settings, ordered)
    (settings.run / SNAPSHOTS).mkdir()
    write_checkpoint(settings, {}, settings.run / BASE)
    watch = _train(settings, ordered, demonstrations.held_out, snapshots, say)
    steps = steps_at(settings.shares, watch.kept, ordered.samples_S)
    for share, step in steps.items():
        write_checkpoint(settings, snapshots.load(step), settings.run / share_name(share))
    write_checkpoint(settings, snapshots.load(watch.kept), settings.run / FINAL)
    finish(settings.run, make_manifest(settings, demonstrations, ordered, watch, steps))


def _check(settings: SftSettings) -> WholeCheckpoint:
    """Check everything that can be checked without loading the base model, and return it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.cuda.device_count() > 1:
        raise InvalidRequestError(
            "densepath sft runs in one process on one GPU: start it without a launcher, "
            "and with CUDA_VISIBLE_DEVICES=0 if there are several GPUs"
        )
    base = require_checkpoint(settings.base, "--base")
    limit = base.config.context_length
    if settings.max_length is not None and settings.max_length > limit:
        raise InvalidRequestError(
            f"--max-length {settings.max_length} is above the model's context length of {limit} tokens"
        )
    return base


def _read(settings: SftSettings, tokenizer: Any, max_length: int, say: Console) -> Demonstrations:
    learned: ListLike[Sequence] = read_demonstrations(settings.demonstrations, tokenizer)
    held_out: ListLike[Sequence] = []
    if settings.validation is not None:
        held_out = read_demonstrations(settings.validation, tokenizer)
    elif settings.validation_share is not None:
        learned, held_out = split(learned, settings.validation_share, settings.seed)
    short = [[one for one in part if len(one.token_ids_L) <= max_length] for part in (learned, held_out)]
    too_long = len(learned) + len(held_out) - sum(map(len, short))
    if not short[0] or (settings.validates and not short[1]):
        raise InvalidRequestError(
            f"all demonstrations to learn from, or all to validate on, have more than {max_length} tokens: "
            "give a larger --max-length"
        )
    if too_long:
        say.print(f"left out: {too_long} demonstrations with more than {max_length} tokens (--max-length)")
    return Demonstrations(short[0], short[1], too_long)


def _plan(settings: SftSettings, ordered: Ordered) -> Snapshots:
    """The steps whose weights are kept. Raises InvalidRequestError for a share below one step."""
    ends = {ordered.steps}
    if settings.patience is not None:
        ends |= set(range(settings.validate_every, ordered.steps, settings.validate_every))
    return Snapshots(
        settings.run / SNAPSHOTS,
        {end: {end, *steps_at(settings.shares, end, ordered.samples_S).values()} for end in sorted(ends)},
    )


def _train(
    settings: SftSettings,
    ordered: Ordered,
    held_out: ListLike[Sequence],
    snapshots: Snapshots,
    say: Console,
) -> Watch:
    set_seed(settings.seed)  # of the adapters; TRL sets it again
    log_every = settings.validate_every if held_out else max(1, ordered.steps // _LOG_ROWS)
    trainer = Sft(
        load_trainable(settings),
        load_tokenizer(settings.base),
        ordered.rows,
        settings.run / SNAPSHOTS,
        settings,
        log_every,
    )
    validate = None
    if held_out:
        batches = trainer.get_eval_dataloader(Dataset.from_dict(to_columns(held_out)))
        validate = partial(trainer.validation_loss, batches)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(TextColumn("SFT"), *columns, console=say) as bar:
        task = bar.add_task("", total=ordered.steps)
        watch = Watch(
            snapshots,
            ordered.samples_S,
            validate=validate,
            validate_every=settings.validate_every,
            patience=settings.patience,
            told=lambda step, words: bar.update(task, completed=step, description=words),
        )
        trainer.add_callback(watch)
        trainer.train()
    base_loss = watch.losses.get(0, math.inf)
    if settings.patience is not None and watch.losses[watch.kept] >= base_loss:
        raise InvalidRequestError(
            f"SFT never had a lower validation loss than the base model's {base_loss:.4f} nats per token: "
            "lower --learning-rate, validate more often, or give other demonstrations"
        )
    return watch
