"""A checkpoint is there whole or not at all: killed at every write, damaged at random bytes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from densepath.trainer.errors import RunError
from densepath.trainer.reinforce import checkpoints
from densepath.trainer.reinforce.checkpoints import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_model,
)
from densepath.trainer.reinforce.workers import Workers
from trainer.killed import save, save_and_die, spawn, tensors


def silent(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def folder(tmp_path: Path, pair_dirs: tuple[Path, Path]) -> Path:
    """Checkpoints of the steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path / "checkpoints", pair_dirs[0], step, keep=2)
    return tmp_path / "checkpoints"


def assert_whole(folder: Path) -> int:
    """The newest checkpoint's step, its tensors all those of that step."""
    found = newest_checkpoint(folder, silent)
    assert found is not None
    step, directory = found
    both = [{name: torch.empty_like(tensor) for name, tensor in of.items()} for of in tensors(step)]
    load_checkpoint(directory, *both, Workers())
    for got, want in zip(both, tensors(step), strict=True):
        assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    return step


def test_row_27_killed_at_every_write(folder: Path, pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    seen, at = set(), 0
    while True:
        at += 1
        copy = Path(shutil.copytree(folder, tmp_path / "killed"))
        process = spawn(save_and_die, copy, pair_dirs[0], 3, 2, at)
        process.join()
        step = assert_whole(copy)
        if process.exitcode == 0:
            assert step == 3
            break
        assert process.exitcode == -signal.SIGKILL
        seen.add(step)
        save(copy, pair_dirs[0], 3, 2)  # what a run does that goes on
        assert assert_whole(copy) == 3
        assert sorted(path.name for path in copy.iterdir()) == ["step-000002", "step-000003"]
        shutil.rmtree(copy)
    assert at > 30, "the save has fewer writes than files: the counting is broken"
    assert seen == {2, 3}, "kills before and after the rename were both tried"


def test_the_newest_are_kept(folder: Path, pair_dirs: tuple[Path, Path]) -> None:
    for step in (3, 10, 1_000_000):
        save(folder, pair_dirs[0], step, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000010", "step-1000000"]
    assert assert_whole(folder) == 1_000_000


def test_row_28_a_damaged_one_is_passed_over_and_said(folder: Path) -> None:
    rng = random.Random(0)
    files = sorted(path for path in (folder / "step-000002").rglob("*") if path.is_file())
    for trial in range(25):
        path = files[trial % len(files)]
        data = path.read_bytes()
        if trial % 3 == 0:
            path.write_bytes(data[: rng.randrange(len(data))])
        else:
            at = rng.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        said: list[str] = []
        found = newest_checkpoint(folder, said.append)
        if found is not None and found[0] == 2:  # a change of white space in the manifest changes nothing
            assert path.name == "manifest.json"
        else:
            assert found is not None
            assert found[0] == 1
            assert "step-000002 is damaged" in said[0]
        path.write_bytes(data)
    assert assert_whole(folder) == 2


def test_row_28_a_file_that_is_missing_is_named(folder: Path) -> None:
    (moments,) = (folder / "step-000002" / "optimizer").iterdir()
    moments.unlink()
    said: list[str] = []
    found = newest_checkpoint(folder, said.append)
    assert found is not None
    assert found[0] == 1
    assert f"optimizer/{moments.name} is missing" in said[0]


def test_row_28_all_damaged_is_an_error_and_no_new_start(folder: Path) -> None:
    for step in (1, 2):
        (folder / f"step-{step:06d}" / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="all 2 checkpoints"):
        newest_checkpoint(folder, lambda message: None)


def test_none_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nothing", silent) is None


def full(*_: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["os.fsync", "safetensors.torch.save", "shutil.copyfile"])
def test_row_29_a_full_disk_leaves_the_old_ones(
    place: str, folder: Path, pair_dirs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(OSError, match="No space") as caught:
            save(folder, pair_dirs[0], 3, keep=1)
    assert caught.value.filename == str(folder / "step-000003")
    assert sorted(path.name for path in folder.iterdir()) == ["step-000001", "step-000002"]
    assert assert_whole(folder) == 2


def test_a_large_model_is_several_files(
    tmp_path: Path, pair_dirs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from densepath.pair.checkpoint import require_checkpoint

    monkeypatch.setattr(checkpoints, "_FILE_SIZE", "50KB")
    weights = load_file(pair_dirs[0] / "model.safetensors")
    save_model(tmp_path / "final", pair_dirs[0], weights, Workers())
    assert len(require_checkpoint(tmp_path / "final").weights) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "final", local_files_only=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    directory = save_checkpoint(tmp_path / "c", 1, pair_dirs[0], weights, weights, Workers(), keep=1)
    assert len(list((directory / "optimizer").iterdir())) > 1
    both = [{name: torch.empty_like(tensor) for name, tensor in weights.items()} for _ in range(2)]
    load_checkpoint(directory, *both, Workers())
    assert all(torch.equal(tensor, weights[name]) for of in both for name, tensor in of.items())


def test_a_checkpoint_is_a_model_directory(tmp_path: Path, pair_dirs: tuple[Path, Path]) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from densepath.pair.pair import load_pair

    weights = load_file(pair_dirs[1] / "model.safetensors")
    save_model(tmp_path / "final", pair_dirs[0], weights, Workers())
    directory = save_checkpoint(tmp_path / "c", 7, pair_dirs[0], weights, weights, Workers(), keep=1)
    for made in (tmp_path / "final", directory):
        model = AutoModelForCausalLM.from_pretrained(made, local_files_only=True)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        AutoTokenizer.from_pretrained(made, local_files_only=True)
    assert sorted(path.name for path in (tmp_path / "final").glob("*.safetensors*")) == ["model.safetensors"]
    pair = load_pair(tmp_path / "final", pair_dirs[1], allow_same=True, cache_dir=tmp_path / "cache")
    assert pair.vocab_size == 300
