"""Ways to damage a checkpoint, for tests: each takes the model directory and changes it in place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

Damage = Callable[[Path], object]


def edit(file: str, **changes: Any) -> Damage:
    """Set fields of a JSON file; None takes a field out."""

    def damage(directory: Path) -> None:
        value = json.loads((directory / file).read_text()) | changes
        kept = {name: field for name, field in value.items() if field is not None}
        (directory / file).write_text(json.dumps(kept))

    return damage


def edit_tokenizer(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change what tokenizer.json holds."""

    def damage(directory: Path) -> None:
        value = json.loads((directory / "tokenizer.json").read_text())
        change(value)
        (directory / "tokenizer.json").write_text(json.dumps(value))

    return damage


def write(file: str, text: str) -> Damage:
    return lambda directory: (directory / file).write_text(text)


def remove(file: str) -> Damage:
    return lambda directory: (directory / file).unlink()


def rename(file: str, to: str) -> Damage:
    return lambda directory: (directory / file).rename(directory / to)


def truncate(directory: Path) -> None:
    """Cut the last bytes of the weights off."""
    os.truncate(directory / WEIGHTS, (directory / WEIGHTS).stat().st_size - 10)


def corrupt_header(directory: Path) -> None:
    with (directory / WEIGHTS).open("r+b") as file:
        file.seek(8)
        file.write(b"\x80\xff[[[")


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})

    return damage


def set_values(name: str, value: float, count: int) -> Damage:
    """Write `value` over a tensor's first `count` elements."""
    return change_tensors(lambda tensors: tensors[name].view(-1)[:count].fill_(value))


def spoil_all(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.view(-1)[-1] = float("inf")


def more_rows(tensors: dict[str, torch.Tensor]) -> None:
    """An embedding and a head with 64 rows more."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat((tensors[name], tensors[name][:64]))


def shard(directory: Path) -> dict[str, str]:
    """The one weights file as two shards with an index. Returns the weight map."""
    tensors = load_file(directory / WEIGHTS)
    names = sorted(tensors)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, half in halves.items() for name in half}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / WEIGHTS).unlink()
    return weight_map


def shard_and(change: Callable[[dict[str, str]], object]) -> Damage:
    """Shards, with another weight map in the index."""

    def damage(directory: Path) -> None:
        weight_map = shard(directory)
        change(weight_map)
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return damage


def several(*damages: Damage) -> Damage:
    def damage(directory: Path) -> None:
        for one in damages:
            one(directory)

    return damage


def swap_two_ids(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab["Q"], vocab["Z"] = vocab["Z"], vocab["Q"]


def put_into_another_shard(directory: Path) -> None:
    """The first tensor of the first shard into the second too."""
    name, tensor = next(iter(sorted(load_file(directory / "a.safetensors").items())))
    tensors = load_file(directory / "b.safetensors")
    save_file({**tensors, name: tensor}, directory / "b.safetensors", metadata={"format": "pt"})
