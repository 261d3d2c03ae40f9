"""Choosing which steps of an SFT run become checkpoints, and keeping their weights until that is known.

The shares refer to the samples that the kept step has seen. With early stopping, any validated step may be
the kept one, and only the end of the run decides. Until then, the weights that each candidate needs are
stored.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from densepath.errors import InvalidRequestError

Parameters = dict[str, Tensor]


def steps_at(shares: Sequence[float], kept: int, samples_S: Sequence[int]) -> dict[float, int]:
    """For each share, above 0, the last step with at most that share of the samples of the step `kept`.

    `samples_S[s]` is how many samples have been seen after step s. Raises InvalidRequestError if a share
    comes before the end of the first step.
    """
    steps = {}
    for share in shares:
        samples = share * samples_S[kept] + 1e-6  # rounding: 0.29 * 100 is below 29
        steps[share] = bisect_right(samples_S, samples, hi=kept + 1) - 1
        if steps[share] == 0:
            raise InvalidRequestError(
                f"--checkpoint-at {share:g} of {samples_S[kept]} samples comes before the end of the first "
                f"step, which takes {samples_S[1]} samples: give a larger share, a smaller --batch-size, "
                "more steps or, if SFT may stop early, a larger --validate-every"
            )
    return steps


class Snapshots:
    """The trained parameters after each step that may become a checkpoint, one file per step in `folder`."""

    def __init__(self, folder: Path, wanted: Mapping[int, set[int]]) -> None:
        """`wanted[end]` are the steps that become checkpoints if `end` is the kept step."""
        self._folder, self._wanted = folder, wanted
        self._steps = set().union(*wanted.values())

    def take(self, step: int, model: nn.Module) -> None:
        """Keep the trained parameters if this step may become a checkpoint."""
        if step in self._steps:
            trained = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
            save_file(trained, self._path(step))

    def drop_before(self, best: int, step: int) -> None:
        """Remove the files that no outcome needs any more: neither `best` nor any later end."""
        asking = [steps for end, steps in self._wanted.items() if end == best or end > step]
        for done in self._steps - set().union(*asking):
            self._path(done).unlink(missing_ok=True)
        self._steps = set().union(*asking)

    def load(self, step: int) -> Parameters:
        """The parameters after a step, by name. Empty for step 0, the base model."""
        return load_file(self._path(step)) if step else {}

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}.safetensors"


@torch.no_grad()
def restore(model: nn.Module, parameters: Parameters) -> None:
    """Copy each tensor into the parameter of its name. Other parameters stay as they are."""
    named = dict(model.named_parameters())
    for name, tensor in parameters.items():
        named[name].copy_(tensor)
