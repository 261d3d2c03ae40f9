"""The checkpoints of a run: complete or absent, checked before use, and only the last few are kept.

    checkpoints/step-000040/   the policy as a model directory with its tokenizer
                               optimizer/, the tensors of AdamW: files of each process
                               manifest.json, the step, and the size and SHA-256 of every file

Each process writes its own shards, with torch.distributed.checkpoint, so that no process gathers the whole
model or the whole optimizer for a checkpoint. All processes must therefore see the same directory. The files
of the weights are then joined, one tensor at a time, into the files of a model directory. Everything is
written under another name, fsynced and renamed. Loading takes the newest checkpoint whose files match its
manifest; a damaged one is skipped, with a warning. Tensors are stored as safetensors, without pickle. The
number of processes that load a checkpoint may differ from the number that wrote it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from densepath.file_errors import naming
from densepath.files import commit_directory
from densepath.pair.checkpoint import CONFIG, GENERATION_CONFIG
from densepath.pair.weights import INDEX, WEIGHTS
from densepath.trainer.errors import RunError
from densepath.trainer.reinforce.workers import Workers

MANIFEST = "manifest.json"
OPTIMIZER = "optimizer"
_NAME = re.compile(r"step-(\d{6,})")
#: Files beside the weights that every checkpoint copies from the SFT checkpoint.
_COPIED = (
    CONFIG,
    GENERATION_CONFIG,
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "vocab*",
    "merges*",
)
_FILE_SIZE = "5GB"

#: Tensors by name. Of a sharded tensor, this process holds its own part only.
Held = Mapping[str, Tensor]


def save_model(directory: Path, source: Path, weights: Held, workers: Workers) -> None:
    """Write a complete model directory: `weights`, with config and tokenizer from the directory `source`.

    All processes call it together, here and in `save_checkpoint`.
    """
    with _filled(directory, workers) as partial:
        _write_model(partial, source, weights, workers)


def save_checkpoint(
    folder: Path, step: int, source: Path, weights: Held, moments: Held, workers: Workers, *, keep: int
) -> Path:
    """Write the checkpoint of `step` into `folder`, then remove all but the newest `keep`."""
    directory = folder / f"step-{step:06d}"
    with _filled(directory, workers) as partial:
        _write_model(partial, source, weights, workers)
        writer = HuggingFaceStorageWriter(str(partial / OPTIMIZER), _files_of(moments), save_distributed=True)
        _write(moments, writer, workers)
        if workers.first:
            files = {name: _size_and_hash(path) for name, path in _files(partial)}
            manifest = {"step": step, "files": files}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    if workers.first:
        for _, old in _found(folder)[keep:]:
            # First, so that a kill in between leaves no valid checkpoint.
            (old / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(old)
    workers.wait()
    return directory


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[int, Path] | None:
    """The newest complete checkpoint, as (step, directory); None if there is none.

    Checkpoints that were incomplete when a process was killed are removed. Raises RunError if there are
    checkpoints and all are damaged, because a new start would silently lose them.
    """
    if not folder.is_dir():
        return None
    for left in folder.glob(".*.partial"):
        shutil.rmtree(left)
    damaged = 0
    for step, directory in _found(folder):
        if not (directory / MANIFEST).is_file():
            shutil.rmtree(directory)  # its removal was interrupted
            continue
        problem = _problem(directory, step)
        if problem is None:
            return step, directory
        damaged += 1
        warn(f"the checkpoint {directory.name} is damaged and is skipped: {problem}")
    if damaged:
        raise RunError(f"all {damaged} checkpoints of this run are damaged: start a run in another directory")
    return None


def load_checkpoint(directory: Path, weights: Held, moments: Held, workers: Workers) -> None:
    """Fill `weights` and `moments` in place from a checkpoint. Each process reads its own part."""
    for place, held in ((directory, weights), (directory / OPTIMIZER, moments)):
        with _plainly():
            load(
                _with_dimensions(held),
                storage_reader=HuggingFaceStorageReader(str(place)),
                no_dist=workers.count == 1,
            )


@contextmanager
def _filled(directory: Path, workers: Workers) -> Iterator[Path]:
    """A directory that all processes fill, which becomes `directory` when the block ends without an error.

    After an error, as on a full disk, it is removed, and what was there before stays.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        with naming(directory):
            if workers.first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            workers.wait()
            yield partial
            if workers.first:
                shutil.rmtree(directory, ignore_errors=True)  # a damaged checkpoint of the same step
                commit_directory(partial, directory)
    finally:
        if workers.first:
            shutil.rmtree(partial, ignore_errors=True)
    workers.wait()


def _write_model(partial: Path, source: Path, weights: Held, workers: Workers) -> None:
    files = _files_of(weights)
    writer = HuggingFaceStorageWriter(str(partial), files, save_distributed=True, enable_consolidation=True)
    _write(weights, writer, workers)
    if not workers.first:
        return
    shutil.rmtree(writer.path)  # the files that were joined
    if max(files.values()) == 1:
        (written,) = partial.glob("*.safetensors")
        written.rename(partial / WEIGHTS)
        (partial / INDEX).unlink()
    for pattern in _COPIED:
        for path in source.glob(pattern):
            shutil.copyfile(path, partial / path.name)


def _files_of(held: Held) -> dict[str, int]:
    """The number of each tensor's file, from 1 on. A process holds one file at a time in memory."""
    from huggingface_hub import split_torch_state_dict_into_shards

    sizes = {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in held.items()}
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=_FILE_SIZE)
    return {name: file for file, names in enumerate(split.filename_to_tensors.values(), 1) for name in names}


def _write(held: Held, writer: Any, workers: Workers) -> None:
    with _plainly():
        save(_with_dimensions(held), storage_writer=writer, no_dist=workers.count == 1)


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise the original error, such as the OSError of a full disk, where torch raises a BaseException.

    Also hide the warning that no processes are connected: a run of one process connects none.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from error


def _with_dimensions(held: Held) -> dict[str, Any]:
    """The same tensors, not copied. AdamW's counts have no dimension and become arrays of one entry."""
    return {name: tensor if tensor.ndim else tensor.view(1) for name, tensor in held.items()}


def _files(directory: Path) -> list[tuple[str, Path]]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [(path.relative_to(directory).as_posix(), path) for path in paths]


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints by step, the newest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _size_and_hash(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _problem(directory: Path, step: int) -> str | None:
    """Why a checkpoint is damaged; None if it is not."""
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
