"""What the kill tests run in processes of their own: a checkpoint's save, and a whole run.

The processes come from a fork server that has torch loaded, so that each starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console

from densepath.trainer.reinforce.checkpoints import save_checkpoint
from densepath.trainer.reinforce.run import train
from densepath.trainer.reinforce.settings import TrainSettings

#: Audit events of what changes a directory or a file; a file's data comes through `open`.
WRITES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile", "shutil.rmtree"}


def spawn(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start `function` in a process of its own."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.killed", "transformers.models.llama.modeling_llama"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def tensors(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and optimizer's tensors of a checkpoint, told apart by `seed`."""
    weights = {"a.weight": torch.full((64, 32), float(seed)), "b.weight": torch.arange(32.0) + seed}
    return weights, {f"exp_avg/{name}": tensor / 2 for name, tensor in weights.items()}


def save(folder: Path, source: Path, step: int, keep: int) -> None:
    """Save the checkpoint of `step`."""
    weights, moments = tensors(step)
    save_checkpoint(folder, step, source, weights.items(), moments.items(), keep=keep)


def save_and_die(folder: Path, source: Path, step: int, keep: int, at: int) -> None:
    """The same, killed at its `at`-th write; a safetensors file is then half written.

    Ends normally where there are fewer writes.
    """
    done = 0

    def write(name: str = "") -> None:
        nonlocal done
        if name.startswith(("open", "os.", "shutil.")) and name not in WRITES:
            return
        done += 1
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync, serialize = os.fsync, safetensors.torch.serialize_file

    def counted_fsync(descriptor: int) -> None:
        write()
        fsync(descriptor)

    def torn(data: Any, path: Any, metadata: Any = None) -> None:
        serialize(data, path, metadata)
        if done + 1 == at:
            os.truncate(path, os.path.getsize(path) // 2)
        write()

    os.fsync, safetensors.torch.serialize_file = counted_fsync, torn
    sys.addaudithook(lambda name, _: write(name) if name in WRITES else None)
    save(folder, source, step, keep)


def run(settings: TrainSettings, log: Path) -> None:
    """A whole run, or what is left of it; one thread, so that the bits are the same."""
    torch.set_num_threads(1)
    with log.open("a") as file:
        train(settings, Console(file=file))
