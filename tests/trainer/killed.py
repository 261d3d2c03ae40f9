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

import densepath
from densepath.trainer.reinforce.checkpoints import save_checkpoint
from densepath.trainer.reinforce.run import train
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.reinforce.workers import Workers

#: Where the processes find the tests and densepath.
PATHS = (Path(__file__).parents[1], Path(densepath.__file__).parents[1])
#: Audit events of what changes a directory or a file; a file's data comes through `open`.
WRITES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile", "shutil.rmtree"}


def spawn(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start `function` in a process of its own."""
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, PATHS))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.killed", "transformers.models.llama.modeling_llama"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def tensors(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and optimizer's tensors of a checkpoint, told apart by `seed`."""
    weights = {"a.weight": torch.full((64, 32), float(seed)), "b.weight": torch.arange(32.0) + seed}
    moments = {f"exp_avg/{name}": tensor / 2 for name, tensor in weights.items()}
    return weights, moments | {"step/a.weight": torch.tensor(float(seed))}


def save(folder: Path, source: Path, step: int, keep: int) -> None:
    """Save the checkpoint of `step`."""
    weights, moments = tensors(step)
    save_checkpoint(folder, step, source, weights, moments, Workers(), keep=keep)


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

    fsync, serialize = os.fsync, safetensors.torch.save

    def counted_fsync(descriptor: int) -> None:
        write()
        fsync(descriptor)

    def torn(*arguments: Any, **named: Any) -> bytes:
        data: bytes = serialize(*arguments, **named)
        return data[: len(data) // 2] if done + 1 == at else data

    os.fsync, safetensors.torch.save = counted_fsync, torn
    sys.addaudithook(lambda name, _: write(name) if name in WRITES else None)
    save(folder, source, step, keep)


def run(settings: TrainSettings, log: Path) -> None:
    """A whole run, or what is left of it; one thread, so that the bits are the same."""
    torch.set_num_threads(1)
    with log.open("a") as file:
        train(settings, Console(file=file))
