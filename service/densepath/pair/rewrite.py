"""Copies of checkpoints under other tensor names or with another config, kept in the cache.

The bytes of the tensors are copied as they are, one chunk at a time. A copy's name in the cache is derived
from the contents of the original and from what is changed, so a change of either causes a new copy.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from densepath.errors import InvalidPairError
from densepath.files import cache_directory, locked, whole_directory
from densepath.pair.checkpoint import CONFIG, fingerprint
from densepath.pair.identity import Identities, changed, identify_all
from densepath.pair.weights import INDEX, WEIGHTS, Tensor, Tensors, file_digest
from densepath.versions import installed_versions

_CHUNK = 1 << 20  # bytes
#: Sizes of a safetensors header are multiples of this.
_ALIGNED = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Change:
    """What a copy has: its config.json, and each tensor's old name → its new one. Others are left out."""

    config: Mapping[str, Any]
    names: Mapping[str, str]


def rewritten(
    directory: Path, weights: Mapping[str, Tensors], change: Change, cache: str, on_write: Callable[[], None]
) -> Path:
    """The directory of the changed copy. `on_write` is called before it is written, which happens once.

    `weights` are the tensors of the original by file name. `cache` is the name of the folder in the cache.
    Raises InvalidPairError if a file cannot be read or has changed, or the copy cannot be written.
    """
    files = identify_all(directory)
    try:
        target = cache_directory(cache) / f"{directory.resolve().name}-{_key(directory, files, change)}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                on_write()
                with whole_directory(target) as partial:
                    _write(directory, files, weights, change, partial)
                    if names := changed(directory, files):
                        raise InvalidPairError(f"{directory} changed while it was copied: {', '.join(names)}")
    except OSError as error:
        raise InvalidPairError(
            f"{directory} cannot be copied to {cache_directory(cache)}: {error.strerror or error}"
        ) from error
    return target


def _key(directory: Path, files: Identities, change: Change) -> str:
    return fingerprint(
        {
            "files": {name: file_digest(directory / name) for name in sorted(files)},
            "config": change.config,
            "names": change.names,
            "packages": installed_versions(("densepath",)),
        }
    )


def _write(
    directory: Path, files: Identities, weights: Mapping[str, Tensors], change: Change, target: Path
) -> None:
    (target / CONFIG).write_text(json.dumps(change.config, indent=2) + "\n", encoding="utf-8")
    for name in files:
        if name not in (CONFIG, INDEX) and not name.endswith(".safetensors"):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(directory / name, target / name)
    kept = {
        file: {name: tensor for name, tensor in tensors.items() if name in change.names}
        for file, tensors in weights.items()
    }
    kept = {file: tensors for file, tensors in kept.items() if tensors}
    if len(kept) == 1:
        ((file, tensors),) = kept.items()
        _copy_tensors(directory / file, tensors, change.names, target / WEIGHTS)
        return
    for file, tensors in kept.items():
        _copy_tensors(directory / file, tensors, change.names, target / file)
    weight_map = {change.names[name]: file for file, tensors in kept.items() for name in tensors}
    size = sum(tensor.end - tensor.begin for tensors in kept.values() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_tensors(source: Path, tensors: Tensors, names: Mapping[str, str], target: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.end - tensor.begin
        header[names[name]] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with source.open("rb") as read, target.open("wb") as write:
        write.write(len(text).to_bytes(8, "little") + text)
        start = 8 + int.from_bytes(read.read(8), "little")
        for tensor in tensors.values():
            _copy_bytes(read, write, start, tensor)


def _copy_bytes(read: BinaryIO, write: BinaryIO, start: int, tensor: Tensor) -> None:
    read.seek(start + tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        chunk = read.read(min(left, _CHUNK))
        if not chunk:
            raise OSError("the file ended while it was copied")
        write.write(chunk)
        left -= len(chunk)
