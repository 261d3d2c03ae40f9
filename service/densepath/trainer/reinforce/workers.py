"""The processes that train together: one, or those that `torchrun` or `accelerate launch` starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


class Workers:
    """This process among those that train. Close it, or use it in a `with` block."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        if self.count > 1:
            distributed.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo")

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def shard(self, model: Any) -> Any:
        """Spread each layer's parameters over the processes (FSDP2). One process keeps the model as it is."""
        if self.count == 1:
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.count,))
        for layer in model.get_decoder().layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`. The parts of all processes, in order, give all items.

        If the count of processes divides their number, all parts have the same size. Then all processes run
        the same number of forward passes, which FSDP requires.
        """
        size = -(-len(items) // self.count)
        return items[self.rank * size : (self.rank + 1) * size]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every process has reached this point."""
        self.gather(None)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(value)
        return value

    def close(self) -> None:
        """Leave the process group, unless vLLM's engine has already left it."""
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # All leave together: a process that leaves the group early can end one that still uses it.
        if kind is None and self.count > 1 and distributed.is_initialized():
            self.wait()
        self.close()
