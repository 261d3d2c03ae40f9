"""Reading the run directory of `densepath sft`: its checkpoints, and how each was made.

manifest.json    written last: a directory without it is not a run, or the run did not finish
base/            the model before SFT, with the SFT's tokenizer
share-0.50/      the checkpoint after this share of the samples that `final` has seen
final/           the SFT checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.errors import InvalidRequestError
from densepath.files import require_free

MANIFEST, BASE, FINAL = "manifest.json", "base", "final"


@dataclass(frozen=True)
class SftCheckpoint:
    """A checkpoint of a run: its model directory, the requested share, and what it has seen."""

    directory: Path
    share: float  # the requested share of the samples of the final checkpoint
    samples: int  # demonstrations seen; repeated ones count each time
    step: int
    validation_loss: float | None  # nats per token; None if it was not measured


@dataclass(frozen=True)
class SftRun:
    """A finished run of `densepath sft`. `checkpoints` go from the base model to the final one."""

    directory: Path
    checkpoints: tuple[SftCheckpoint, ...]
    manifest: Mapping[str, Any]

    @property
    def final(self) -> Path:
        """The SFT checkpoint."""
        return self.checkpoints[-1].directory

    @property
    def references(self) -> Sequence[SftCheckpoint]:
        """Every checkpoint that can be the reference: all but the final one."""
        return self.checkpoints[:-1]

    def reference_at(self, share: float) -> Path:
        """The checkpoint at a share of the samples. Raises InvalidRequestError if there is none."""
        found = [checkpoint.directory for checkpoint in self.references if checkpoint.share == share]
        if not found:
            shares = ", ".join(f"{checkpoint.share:g}" for checkpoint in self.references)
            raise InvalidRequestError(
                f"this run has no reference at {share:g} of its samples: it has {shares}"
            )
        return found[0]


def read_sft_run(directory: Path) -> SftRun:
    """The run in a directory, from its manifest. Raises InvalidRequestError if there is no finished run."""
    manifest = _read_manifest(directory)
    try:
        if manifest["kind"] != "sft":
            raise InvalidRequestError(
                f"{directory} is a run of `densepath {manifest['kind']}`: give a run of `densepath sft`"
            )
        checkpoints = tuple(_checkpoint(directory, described) for described in manifest["checkpoints"])
    except (KeyError, TypeError) as error:
        raise InvalidRequestError(f"{directory} has a {MANIFEST} that is not from `densepath sft`") from error
    missing = [c.directory.name for c in checkpoints if not c.directory.is_dir()]
    if missing or not checkpoints:
        raise InvalidRequestError(f"{directory} has lost its checkpoints: {', '.join(missing) or 'all'}")
    return SftRun(directory, checkpoints, manifest)


def _read_manifest(directory: Path) -> Any:
    if not directory.is_dir():
        raise InvalidRequestError(f"{directory} is not a directory: give a run of `densepath sft`")
    if not (directory / MANIFEST).is_file():
        require_free(directory)
        if (directory / BASE).is_dir():  # a run writes this first
            raise InvalidRequestError(
                f"{directory} is a run that did not finish: run `densepath sft` again with another --run"
            )
        raise InvalidRequestError(
            f"{directory} is not a run of `densepath sft`: it has no {MANIFEST}; name the checkpoints of "
            "another trainer by --sft and --reference"
        )
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{directory} has a {MANIFEST} that cannot be read as JSON") from error


def _checkpoint(directory: Path, described: Mapping[str, Any]) -> SftCheckpoint:
    loss = described["validation_loss"]
    return SftCheckpoint(
        directory=directory / str(described["path"]),
        share=float(described["share"]),
        samples=int(described["samples"]),
        step=int(described["step"]),
        validation_loss=None if loss is None else float(loss),
    )
