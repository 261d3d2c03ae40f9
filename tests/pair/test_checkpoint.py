"""One model directory that must be whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from densepath.errors import InvalidRequestError
from densepath.pair.checkpoint import require_checkpoint


def test_a_whole_one_keeps_the_tokenizer_that_was_loaded(pair_dirs: tuple[Path, Path]) -> None:
    found = require_checkpoint(pair_dirs[0])
    assert found.tokenizer.loaded("two", add_special_tokens=False)["input_ids"]
    assert len(found.tokenizer.loaded.get_vocab()) <= found.config.embedding_size


def test_all_that_is_wrong_is_said_with_the_option_that_named_it(
    pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(pair_dirs[0], tmp_path / "model"))
    (directory / "tokenizer.json").unlink()
    (directory / "model.safetensors").unlink()
    with pytest.raises(InvalidRequestError) as error:
        require_checkpoint(directory, "--sft")
    assert error.value.message.startswith(f"--sft {directory}: tokenizer.json: is missing")
    assert "; model.safetensors" in error.value.message
    with pytest.raises(InvalidRequestError, match=f"^{tmp_path / 'none'}: is not a directory"):
        require_checkpoint(tmp_path / "none")
