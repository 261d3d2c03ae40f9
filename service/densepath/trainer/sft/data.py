"""The rows of an SFT run in their training order, and how many samples each step has seen."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from densepath.errors import InvalidRequestError
from densepath.sequences import Sequence
from densepath.trainer.sft.demonstrations import to_columns
from densepath.trainer.sft.settings import SftSettings
from densepath.trainer.sft.trl import pack_dataset


@dataclass(frozen=True)
class Ordered:
    """Rows for TRL, taken from the first to the last; after step s, `samples_S[s]` have been seen."""

    rows: Any
    samples_S: list[int]

    @property
    def steps(self) -> int:
        """The total number of updates."""
        return len(self.samples_S) - 1


def order(sequences: ListLike[Sequence], max_length: int, settings: SftSettings) -> Ordered:
    """All epochs in sequence, each in its own order, so that every batch except the last is full.

    With packing, a row holds several demonstrations with at most `max_length` tokens in total.
    """
    rows = Dataset.from_dict(to_columns(sequences))
    samples_R = np.ones(len(rows), dtype=np.int64)
    if settings.packing:
        rows = pack_dataset(rows, max_length)
        samples_R = np.array([len(lengths) for lengths in rows["seq_lengths"]])
    count = round(settings.epochs * len(rows))
    if settings.max_steps is not None:
        count = settings.max_steps * settings.batch_size
    if count == 0:
        raise InvalidRequestError(
            f"--epochs {settings.epochs:g} of {len(rows)} rows gives no row: give a larger value"
        )
    epochs = range(-(-count // len(rows)))
    taken = np.concatenate(
        [np.random.default_rng([settings.seed, epoch]).permutation(len(rows)) for epoch in epochs]
    )[:count]
    ends = np.minimum(np.arange(0, count + settings.batch_size, settings.batch_size), count)
    samples = np.concatenate(([0], samples_R[taken].cumsum()))[ends]
    return Ordered(rows.select(taken), samples.tolist())
