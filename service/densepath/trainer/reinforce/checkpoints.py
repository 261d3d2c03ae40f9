"""Checkpoints of a run: there whole or not at all, checked before they are trusted, the last few kept.

    checkpoints/step-000040/   the policy as a model directory with its tokenizer
                               optimizer.safetensors, AdamW's tensors
                               manifest.json, the step, and size and SHA-256 of every file

A checkpoint is written under another name, fsynced and renamed. Loading takes the newest whose files are
those of its manifest; one that is damaged is passed over, and said. Tensors are safetensors: no pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from densepath.files import commit_directory
from densepath.pair.checkpoint import CONFIG, GENERATION_CONFIG
from densepath.trainer.errors import RunError

MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{6,})")
#: What a model directory has beside its weights, and every checkpoint takes over from the SFT's.
_COPIED = (
    CONFIG,
    GENERATION_CONFIG,
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "vocab*",
    "merges*",
)
_SHARD = "5GB"

Tensors = Iterable[tuple[str, Tensor]]


def save_model(directory: Path, source: Path, weights: Tensors) -> None:
    """Write a model directory whole: `weights`, and config and tokenizer from the directory `source`."""
    partial = _partial(directory)
    _fill(partial, source, weights)
    shutil.rmtree(directory, ignore_errors=True)
    commit_directory(partial, directory)


def save_checkpoint(
    folder: Path, step: int, source: Path, weights: Tensors, moments: Tensors, *, keep: int
) -> Path:
    """Write the checkpoint of `step` into `folder`, then remove all but the newest `keep`."""
    from safetensors.torch import save_file

    directory = folder / f"step-{step:06d}"
    partial = _partial(directory)
    _fill(partial, source, weights)
    save_file({name: tensor.contiguous() for name, tensor in moments}, partial / OPTIMIZER)
    files = {path.name: _size_and_hash(path) for path in sorted(partial.iterdir())}
    (partial / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)  # a damaged one of the same step
    commit_directory(partial, directory)
    for _, old in _found(folder)[keep:]:
        (old / MANIFEST).unlink(missing_ok=True)  # first: a kill half-way leaves nothing that counts
        shutil.rmtree(old)
    return directory


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[int, Path] | None:
    """The newest whole checkpoint, as (step, directory); None where there is none.

    What was being written when a process was killed is removed. Raises RunError where there are
    checkpoints and all are damaged: to start anew would be to lose them in silence.
    """
    if not folder.is_dir():
        return None
    for left in folder.glob(".*.partial"):
        shutil.rmtree(left)
    damaged = 0
    for step, directory in _found(folder):
        if not (directory / MANIFEST).is_file():
            shutil.rmtree(directory)  # was being removed
            continue
        problem = _problem(directory, step)
        if problem is None:
            return step, directory
        damaged += 1
        warn(f"the checkpoint {directory.name} is damaged and passed over: {problem}")
    if damaged:
        raise RunError(f"all {damaged} checkpoints of this run are damaged: start another run directory")
    return None


def load_tensors(directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights and the optimizer's tensors of a checkpoint."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        weights |= load_file(path)
    return weights, load_file(directory / OPTIMIZER)


def _partial(directory: Path) -> Path:
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _fill(partial: Path, source: Path, weights: Tensors) -> None:
    from huggingface_hub import save_torch_state_dict

    for pattern in _COPIED:
        for path in source.glob(pattern):
            shutil.copyfile(path, partial / path.name)
    save_torch_state_dict(
        {name: tensor.contiguous() for name, tensor in weights}, partial, max_shard_size=_SHARD
    )


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints by step, the newest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _size_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _problem(directory: Path, step: int) -> str | None:
    """What keeps a checkpoint from being whole."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        if manifest["step"] != step:
            return "its manifest is of another step"
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    for name, described in files.items():
        if not (directory / name).is_file():
            return f"{name} is missing"
        if _size_and_hash(directory / name) != described:
            return f"{name} is not what was written"
    return None
