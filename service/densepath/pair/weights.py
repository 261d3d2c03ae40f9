"""The safetensors files of one checkpoint: their names, whether they are complete and finite, and digests.

A file is read once, in chunks, for both its SHA-256 and its non-finite values. The result is stored in a
cache directory together with the file's identity (`densepath.pair.identity`), so weights are not read at
every start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from densepath.files import cache_directory, write_whole
from densepath.pair.identity import Identity, identify
from densepath.pair.tensor_names import some
from densepath.pair.unreadable import unfinished, why_unreadable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CHUNK = 1 << 18  # bytes: a multiple of every item size, and small enough to stay in the processor's cache
_CACHE_FORMAT = 2

#: safetensors dtype → (unsigned type of that width, mask, value): an element is NaN or infinite exactly if
#: `bits & mask == value`. Types that are not listed here cannot hold such an element.
_NON_FINITE: Mapping[str, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000, 0x7F80_0000),
    "C64": (np.uint32, 0x7F80_0000, 0x7F80_0000),
    "BF16": (np.uint16, 0x7F80, 0x7F80),
    "F16": (np.uint16, 0x7C00, 0x7C00),
    "F8_E5M2": (np.uint8, 0x7C, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F, 0x7F),
    "F8_E8M0": (np.uint8, 0xFF, 0xFF),
    "F8_E5M2FNUZ": (np.uint8, 0xFF, 0x80),
    "F8_E4M3FNUZ": (np.uint8, 0xFF, 0x80),
}

#: Called with a file's name within its directory, and what is wrong with it.
Report = Callable[[str, str], None]


class Tensor(NamedTuple):
    """A tensor's safetensors dtype, its bytes `[begin, end)` after the header, and its shape."""

    dtype: str
    begin: int
    end: int
    shape: tuple[int, ...]


#: Tensors by name, in their order in the file.
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Scan:
    """One file's SHA-256 (hex), and the tensors with non-finite values: (name, how many)."""

    digest: str
    non_finite: tuple[tuple[str, int], ...]


def read_json(path: Path, report: Report) -> dict[str, Any] | None:
    """The JSON object in `path`. Reports and returns None if the file holds something else."""
    if reason := why_unreadable(path):
        report(path.name, reason)
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        report(path.name, "cannot be read as JSON: it must be a JSON object")
        return None
    if not isinstance(value, dict):
        report(path.name, "is not a JSON object: it must be one")
        return None
    return value


def read_weights(directory: Path, report: Report) -> dict[str, Tensors]:
    """File name → its tensors, for the files that hold the weights: one file, or the shards of an index.

    Empty, with the reason reported, if the weights are not complete.
    """
    if os.path.lexists(directory / INDEX):
        return _read_shards(directory, report)
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if found == [WEIGHTS]:
        tensors = read_tensors(directory / WEIGHTS, report)
        return {WEIGHTS: tensors} if tensors is not None else {}
    if WEIGHTS in found:
        others = ", ".join(name for name in found if name != WEIGHTS)
        report(WEIGHTS, f"is not the only safetensors file ({others}): keep one, or name shards in {INDEX}")
    elif not found and any(next(directory.glob(pattern), None) for pattern in PICKLES):
        report(WEIGHTS, "is missing, and the weights are pickled: convert them to safetensors")
    else:
        where = f"weights must be in {WEIGHTS}, or in shards that {INDEX} names"
        report(WEIGHTS, f"is missing{unfinished(directory)}: {where}")
    return {}


def _read_shards(directory: Path, report: Report) -> dict[str, Tensors]:
    index = read_json(directory / INDEX, report)
    if index is None:
        return {}
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        report(INDEX, "has no weight_map: it must give the file of each tensor")
        return {}
    # Only names of files in the directory itself: the index must not lead out of it.
    if any(not isinstance(shard, str) or Path(shard).name != shard for shard in weight_map.values()):
        report(INDEX, "names a shard outside the directory: shards must be in the directory of the index")
        return {}
    shards = sorted(set(weight_map.values()))
    if WEIGHTS not in shards and (directory / WEIGHTS).exists():
        report(WEIGHTS, f"is in the same directory as {INDEX}, which does not name it: keep one or the other")
        shards = []
    files: dict[str, Tensors] = {}
    seen: set[str] = set()
    for shard in shards:
        if not os.path.lexists(directory / shard):
            late = unfinished(directory)
            report(INDEX, f"names {shard}, which is missing{late}: every shard must be in the directory")
        elif (tensors := read_tensors(directory / shard, report)) is not None:
            lost = [name for name, of in weight_map.items() if of == shard and name not in tensors]
            if lost:
                report(INDEX, f"names {some(lost)} in {shard}, which has no such tensor")
            elif twice := sorted(name for name in tensors if name in seen):
                report(shard, f"holds {some(twice)}, which another shard holds too: keep one of each")
            else:
                files[shard] = tensors
            seen |= tensors.keys()
    return files if len(files) == len(shards) else {}


def read_tensors(path: Path, report: Report) -> Tensors | None:
    """The header of a safetensors file. The library checks that its offsets fill the file exactly."""
    if reason := why_unreadable(path):
        report(path.name, reason)
        return None
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (SafetensorError, OSError, ValueError):
        report(path.name, "is truncated or corrupt: it must be a complete safetensors file")
        return None
    header.pop("__metadata__", None)
    if not header:
        report(path.name, "holds no tensors: it must hold the model's weights")
        return None
    tensors = {
        name: Tensor(entry["dtype"], begin, end, tuple(entry["shape"]))
        for name, entry in header.items()
        for begin, end in [entry["data_offsets"]]
    }
    return dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))


def describe_non_finite(scan: Scan) -> str:
    """One line that names the tensors with non-finite values."""
    counts = [f"{name} ({count})" for name, count in scan.non_finite]
    return f"has NaN or infinite values in {some(counts)}: weights must be finite"


def scan_file(path: Path, tensors: Tensors, on_bytes: Callable[[int], None]) -> Scan:
    """Read the whole file once. `on_bytes` is called with the number of bytes of each chunk.

    Raises OSError if the file is shorter than its header says.
    """
    digest = hashlib.sha256()
    non_finite: list[tuple[str, int]] = []
    buffer = bytearray(_CHUNK)
    with path.open("rb") as file:
        size = file.read(8)
        head = size + file.read(int.from_bytes(size, "little"))
        digest.update(head)
        on_bytes(len(head))
        for name, tensor in tensors.items():
            count, left = 0, tensor.end - tensor.begin
            while left:
                chunk = memoryview(buffer)[: min(left, _CHUNK)]
                if file.readinto(chunk) != len(chunk):
                    raise OSError("the file ended while it was read")
                digest.update(chunk)
                count += count_non_finite(chunk, tensor.dtype)
                left -= len(chunk)
                on_bytes(len(chunk))
            if count:
                non_finite.append((name, count))
    return Scan(digest.hexdigest(), tuple(non_finite))


def same_values(directory: Path, weights: Mapping[str, Tensors], one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint hold the same bytes in the same dtype."""
    chunks = [_chunks(directory, weights, name) for name in (one, other)]
    return all(a == b for a, b in zip_longest(*chunks))


def _chunks(directory: Path, weights: Mapping[str, Tensors], name: str) -> Iterator[tuple[str, bytes]]:
    shard, tensor = next((shard, tensors[name]) for shard, tensors in weights.items() if name in tensors)
    with (directory / shard).open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little") + tensor.begin)
        left = tensor.end - tensor.begin
        while left and (chunk := file.read(min(left, _CHUNK))):
            left -= len(chunk)
            yield tensor.dtype, chunk


def count_non_finite(data: memoryview, dtype: str) -> int:
    """How many elements of `data` are NaN or infinite. `dtype` is their safetensors type."""
    if dtype not in _NON_FINITE:
        return 0
    unsigned, mask, value = _NON_FINITE[dtype]
    bits = np.frombuffer(data, dtype=unsigned)
    return int(np.count_nonzero((bits & unsigned(mask)) == unsigned(value)))


def cached_scan(path: Path, tensors: Tensors, cache_dir: Path, on_bytes: Callable[[int], None]) -> Scan:
    """The result of `scan_file`, from the cache if the file has not changed since."""
    identity = identify(path)
    key = _cache_key(identity)
    entry = cache_dir / f"{hashlib.sha256(os.fsencode(identity.path)).hexdigest()[:32]}.json"
    if (scan := _read_entry(entry, key)) is not None:
        on_bytes(identity.size)
        return scan
    scan = scan_file(Path(identity.path), tensors, on_bytes)
    if identify(path) == identity:  # otherwise the file changed while it was read
        write_entry(entry, {**key, "digest": scan.digest, "non_finite": scan.non_finite})
    return scan


def file_digest(path: Path) -> str:
    """The SHA-256 of a file of a checkpoint. That of weights is cached. Raises OSError."""
    tensors = read_tensors(path, lambda *_: None) if path.suffix == ".safetensors" else None
    if tensors is not None:
        return cached_scan(path, tensors, cache_directory("weights"), lambda _: None).digest
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_key(identity: Identity) -> dict[str, Any]:
    return {"format": _CACHE_FORMAT, **identity._asdict()}


def _read_entry(entry: Path, key: Mapping[str, Any]) -> Scan | None:
    try:
        found = json.loads(entry.read_text(encoding="utf-8"))
        if (
            any(found[name] != value for name, value in key.items())
            or len(bytes.fromhex(found["digest"])) != 32
        ):
            return None
        return Scan(found["digest"], tuple((str(name), int(count)) for name, count in found["non_finite"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write_entry(entry: Path, value: Mapping[str, Any]) -> None:
    """Write a complete entry or none. If the cache cannot be written, that only costs time."""
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_whole(entry, json.dumps(value).encode())
