"""The safetensors files of one checkpoint: which they are, whether they are whole and finite, their digest.

A file is read once, in chunks, for both its SHA-256 and its non-finite values. The outcome is kept in a
cache directory beside the file's path, size and modification time: weights are not read at every start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CHUNK = 1 << 18  # bytes: a multiple of every item size, and small enough to stay in the processor's cache
_CACHE_FORMAT = 1

#: safetensors dtype → (unsigned type of that width, mask, value): an element is NaN or infinite exactly where
#: `bits & mask == value`. The types that are not here cannot hold one.
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

#: Takes a file's name within its directory and what is wrong with it.
Report = Callable[[str, str], None]


class Tensor(NamedTuple):
    """Where a tensor lies: its safetensors dtype, and its bytes `[begin, end)` after the header."""

    dtype: str
    begin: int
    end: int


#: Tensors by name, in the order in which they lie in the file.
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Scan:
    """One file's SHA-256 (hex), and the tensors with non-finite values: (name, how many)."""

    digest: str
    non_finite: tuple[tuple[str, int], ...]


def read_json(path: Path, report: Report) -> dict[str, Any] | None:
    """The JSON object in `path`; None, reported, where it holds something else."""
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
    """File name → its tensors, for the files that hold the weights: one file, or the shards of an index."""
    if (directory / INDEX).is_file():
        return _read_shards(directory, report)
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if found == [WEIGHTS]:
        tensors = _read_tensors(directory / WEIGHTS, report)
        return {WEIGHTS: tensors} if tensors is not None else {}
    if WEIGHTS in found:
        others = ", ".join(name for name in found if name != WEIGHTS)
        report(WEIGHTS, f"is not the only safetensors file ({others}): keep one, or name shards in {INDEX}")
    elif found:
        report(WEIGHTS, f"is missing: weights must be in {WEIGHTS}, or in shards that {INDEX} names")
    elif any(next(directory.glob(pattern), None) for pattern in _PICKLES):
        report(WEIGHTS, "is missing, and the weights are pickled: convert them, only safetensors is loaded")
    else:
        report(WEIGHTS, f"is missing: weights must be in {WEIGHTS}, or in shards that {INDEX} names")
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
        report(INDEX, "names a shard outside the directory: shards must lie beside the index")
        return {}
    shards = sorted(set(weight_map.values()))
    if WEIGHTS not in shards and (directory / WEIGHTS).exists():
        report(WEIGHTS, f"lies beside {INDEX}, which does not name it: keep one or the other")
    files: dict[str, Tensors] = {}
    for shard in shards:
        if not (directory / shard).is_file():
            report(INDEX, f"names {shard}, which is missing: every shard must be there")
        elif (tensors := _read_tensors(directory / shard, report)) is not None:
            files[shard] = tensors
            lost = [name for name, of in weight_map.items() if of == shard and name not in tensors]
            if lost:
                report(INDEX, f"names {_some(lost)} in {shard}, which has no such tensor")
    return files


def _read_tensors(path: Path, report: Report) -> Tensors | None:
    """A safetensors file's header; the library checks that its offsets fill the file exactly."""
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (SafetensorError, OSError, ValueError):
        report(path.name, "is truncated or corrupt: it must be a whole safetensors file")
        return None
    header.pop("__metadata__", None)
    if not header:
        report(path.name, "holds no tensors: it must hold the model's weights")
        return None
    tensors = {name: Tensor(entry["dtype"], *entry["data_offsets"]) for name, entry in header.items()}
    return dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))


def describe_non_finite(scan: Scan) -> str:
    """Which tensors hold non-finite values, in one line."""
    counts = [f"{name} ({count})" for name, count in scan.non_finite]
    return f"has NaN or infinite values in {_some(counts)}: weights must be finite"


def _some(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def scan_file(path: Path, tensors: Tensors, on_bytes: Callable[[int], None]) -> Scan:
    """Read the whole file once. `on_bytes` is called with the number of bytes of each chunk.

    Raises OSError where the file ends before its header says.
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


def count_non_finite(data: memoryview, dtype: str) -> int:
    """How many of the elements in `data` are NaN or infinite; `dtype` is their safetensors type."""
    if dtype not in _NON_FINITE:
        return 0
    unsigned, mask, value = _NON_FINITE[dtype]
    bits = np.frombuffer(data, dtype=unsigned)
    return int(np.count_nonzero((bits & unsigned(mask)) == unsigned(value)))


def default_cache_dir(name: str = "weights") -> Path:
    """`$XDG_CACHE_HOME/densepath/NAME`, under `~/.cache` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "densepath" / name


def cached_scan(path: Path, tensors: Tensors, cache_dir: Path, on_bytes: Callable[[int], None]) -> Scan:
    """`scan_file`, or what it found before where the file has the path, size and time that it had then."""
    real = path.resolve()
    key = _cache_key(real)
    entry = cache_dir / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
    if (scan := _read_entry(entry, key)) is not None:
        on_bytes(key["size"])
        return scan
    scan = scan_file(real, tensors, on_bytes)
    if _cache_key(real) == key:  # else the file changed while it was read
        write_entry(entry, {**key, "digest": scan.digest, "non_finite": scan.non_finite})
    return scan


def _cache_key(real: Path) -> dict[str, Any]:
    stat = real.stat()
    return {"format": _CACHE_FORMAT, "path": str(real), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


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
    """Write an entry whole or not at all. A cache that cannot be written costs time and nothing else."""
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, suffix=".tmp", delete=False) as file:
            json.dump(value, file)
        os.replace(file.name, entry)
