"""Weights are read in full, once, and what is found is kept; every non-finite bit pattern is known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import densepath.pair.weights
from damage import WEIGHTS, set_values, shard, truncate
from densepath.pair.pair import Pair, Problem, inspect_pair, load_pair
from densepath.pair.weights import count_non_finite, read_weights, scan_file

Inspect = Callable[[], Pair | list[Problem]]


@pytest.fixture
def inspect(dirs: tuple[Path, Path], tmp_path: Path) -> Inspect:
    return lambda: inspect_pair(*dirs, cache_dir=tmp_path / "cache")


def say(found: Pair | list[Problem]) -> str:
    return "; ".join(map(str, found)) if isinstance(found, list) else ""


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read in full."""
    names: list[str] = []

    def counting(path: Path, *rest: Any) -> Any:
        names.append(path.name)
        return scan_file(path, *rest)

    monkeypatch.setattr(densepath.pair.weights, "scan_file", counting)
    return names


def test_weights_are_read_once(
    dirs: tuple[Path, Path], inspect: Inspect, scanned: list[str], tmp_path: Path
) -> None:
    set_values("lm_head.weight", float("nan"), 1)(dirs[0])
    before = inspect()
    assert scanned == [WEIGHTS, WEIGHTS]
    assert inspect() == before
    assert isinstance(before, list)
    assert len(before) == 1
    assert len(scanned) == 2
    os.utime(dirs[0] / WEIGHTS, (1, 1))
    assert inspect() == before
    assert len(scanned) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_file_that_changes_while_it_is_read_is_not_kept(
    dirs: tuple[Path, Path], inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch_after(path: Path, *rest: Any) -> Any:
        scan = scan_file(path, *rest)
        os.utime(path, (1, 1))
        return scan

    monkeypatch.setattr(densepath.pair.weights, "scan_file", touch_after)
    inspect()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("entry", ["", "{}", "[]", "null", "7", '{"format": 1}', "[" * 100_000, None])
def test_corrupt_cache_entry_is_ignored(
    entry: str | None, inspect: Inspect, scanned: list[str], tmp_path: Path
) -> None:
    before = inspect()
    for file in (tmp_path / "cache").iterdir():
        whole = json.loads(file.read_text())
        file.write_text(json.dumps(whole | {"digest": "no digest"}) if entry is None else entry)
    assert inspect() == before
    assert len(scanned) == 4
    assert inspect() == before
    assert len(scanned) == 4


def test_cache_that_cannot_be_written(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert load_pair(*dirs, cache_dir=tmp_path / "file" / "cache")


def test_default_cache(dirs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    load_pair(*dirs)
    assert len(list((tmp_path / "home/densepath/weights").glob("*.json"))) == 2


def test_progress_covers_every_byte(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    for _ in ("read", "cached"):
        calls: list[tuple[int, int]] = []
        load_pair(*dirs, cache_dir=tmp_path / "cache", progress=lambda *call, to=calls: to.append(call))
        total = sum((directory / WEIGHTS).stat().st_size for directory in dirs)
        assert calls[-1] == (total, total)
        assert calls == sorted(calls)


def test_symlinks_as_in_the_hub_cache(dirs: tuple[Path, Path], inspect: Inspect, tmp_path: Path) -> None:
    shard(dirs[0])
    before = load_pair(*dirs, cache_dir=tmp_path / "cache").version
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for file in list(dirs[0].iterdir()):
        blob = file.rename(blobs / hashlib.sha256(file.name.encode()).hexdigest())
        file.symlink_to(os.path.relpath(blob, file.parent))
    assert load_pair(*dirs, cache_dir=tmp_path / "cache").version == before
    (dirs[0] / "a.safetensors").resolve().unlink()
    assert "a.safetensors: is a symbolic link to a missing file" in say(inspect())


def test_scan_of_a_file_of_many_chunks(tmp_path: Path) -> None:
    big = torch.zeros(700_001, dtype=torch.bfloat16)
    big[[0, 131_071, 131_072, 700_000]] = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), float("nan")]
    ).to(torch.bfloat16)
    tensors = {"big": big, "empty": torch.zeros(0), "ids": torch.full((9,), -1), "fine": torch.ones(3)}
    save_file(tensors, tmp_path / WEIGHTS)
    header = read_weights(tmp_path, lambda file, message: pytest.fail(f"{file} {message}"))[WEIGHTS]
    sizes: list[int] = []
    scan = scan_file(tmp_path / WEIGHTS, header, sizes.append)
    assert scan.non_finite == (("big", 4),)
    assert scan.digest == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    assert sum(sizes) == (tmp_path / WEIGHTS).stat().st_size


def test_file_cut_while_it_is_read(
    dirs: tuple[Path, Path], inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_first(path: Path, *rest: Any) -> Any:
        if path.parent == dirs[0].resolve():
            truncate(dirs[0])
        return scan_file(path, *rest)

    monkeypatch.setattr(densepath.pair.weights, "scan_file", cut_first)
    expected = f"sft: {WEIGHTS}: has changed since it was read: it must not change until the pair is loaded"
    assert isinstance(found := inspect(), list)
    assert [str(problem) for problem in found] == [expected]


FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
}


@pytest.mark.parametrize("name", FLOATS)
def test_non_finite_bits_agree_with_torch(name: str, tmp_path: Path) -> None:
    """Every pattern of 8 and 16 bits, in the upper bits of wider types, one element at a time."""
    dtype = FLOATS[name]
    patterns = np.arange(256 if dtype.itemsize == 1 else 65536, dtype=f"<u{dtype.itemsize}")
    patterns <<= patterns.dtype.type(max(8 * dtype.itemsize - 16, 0))
    values = torch.from_numpy(patterns.view(f"<i{dtype.itemsize}")).view(dtype)
    expected = ~values.to(torch.float64).isfinite().numpy()
    assert expected.any()
    data = patterns.tobytes()
    found = [
        count_non_finite(memoryview(data)[i : i + dtype.itemsize], name)
        for i in range(0, len(data), dtype.itemsize)
    ]
    assert found == expected.astype(int).tolist()
    save_file({"x": values.reshape(-1, 8)}, tmp_path / WEIGHTS)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        assert file.get_slice("x").get_dtype() == name


def test_integers_are_finite() -> None:
    assert count_non_finite(memoryview(b"\xff" * 16), "I64") == 0
