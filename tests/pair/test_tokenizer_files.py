"""What makes two tokenizers one, and when transformers reads another one than is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from checkpoints import Architecture, make_checkpoint
from damage import Damage, edit, edit_tokenizer, several
from densepath.integrations.alignment import tokenizer_problems
from densepath.pair.pair import Pair, inspect_pair, load_pair
from densepath.pair.tokenizer_files import describe_other_ids, read_tokenizer

PAD = {
    "content": "[PAD]",
    "id": 300,
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
}


def add_pad(token_id: int = 300, *, special: bool = True) -> Damage:
    token = PAD | {"id": token_id, "special": special}
    return several(
        edit_tokenizer(lambda t: t["added_tokens"].append(token)),
        edit("tokenizer_config.json", pad_token="[PAD]"),
    )


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "gemma2"])
def test_byte_identical_files_are_one_tokenizer(
    architecture: Architecture, tokenizer_class: str, tmp_path: Path
) -> None:
    """AutoTokenizer makes another tokenizer of the same files where config.json has another model_type."""
    sft = make_checkpoint(tmp_path / "sft", seed=1)
    reference = make_checkpoint(tmp_path / "reference", architecture, seed=2)
    for directory in (sft, reference):
        edit("tokenizer_config.json", tokenizer_class=tokenizer_class)(directory)
    assert isinstance(load_pair(sft, reference, cache_dir=tmp_path / "cache"), Pair)


PADS: dict[str, Damage] = {
    "none": edit("tokenizer_config.json", pad_token=None),
    "the EOS token": edit("tokenizer_config.json", pad_token="<|end|>"),
    "a token of its own": add_pad(),
    "a token of its own that is not special": add_pad(special=False),
}


@pytest.mark.parametrize("side", [0, 1], ids=["sft", "reference"])
@pytest.mark.parametrize("name", PADS)
def test_pad_alone_is_no_difference(name: str, side: int, dirs: tuple[Path, Path], tmp_path: Path) -> None:
    before = load_pair(*dirs, cache_dir=tmp_path / "cache").tokenizer_fingerprint
    PADS[name](dirs[side])
    pair = load_pair(*dirs, cache_dir=tmp_path / "cache")
    served = {
        "tokenizer_fingerprint": before,
        "chat_template_fingerprint": pair.chat_template_fingerprint,
        "vocab_size": 320,
        "eos_token_ids": [2],
    }
    mine = AutoTokenizer.from_pretrained(dirs[side])
    assert [p for p in tokenizer_problems(mine, served) if "ids, and the pair" not in p] == []


def test_pad_that_is_a_token_of_the_other_is_a_difference(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    add_pad(300)(dirs[0])
    user = PAD | {"content": "<|tool|>", "special": True}
    edit_tokenizer(lambda t: t["added_tokens"].append(user))(dirs[1])
    found = inspect_pair(*dirs, cache_dir=tmp_path / "cache")
    assert isinstance(found, list)
    assert "added tokens: different in the two" in str(found[0])


def test_tokenizer_that_transformers_reads_otherwise_is_noted(tmp_path: Path) -> None:
    """LlamaTokenizerFast over a byte-level file, as published with many models of Llama's architecture."""
    sft, reference = (
        make_checkpoint(tmp_path / "sft", seed=1),
        make_checkpoint(tmp_path / "reference", seed=2),
    )
    assert load_pair(sft, reference, cache_dir=tmp_path / "cache").notes == ()
    for directory in (sft, reference):
        edit("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")(directory)
    assert load_pair(sft, reference, cache_dir=tmp_path / "cache").notes == (
        "transformers' LlamaTokenizer splits text differently than tokenizer.json itself (6 of 6 probes). "
        "This service tokenises text as transformers does: if the SFT run used tokenizer.json directly, "
        "send token ids instead of text.",
    )


def test_other_special_tokens_are_noted(dirs: tuple[Path, Path]) -> None:
    """The file adds BOS, and transformers' tokenizer does not."""
    tokenizer = AutoTokenizer.from_pretrained(dirs[0])
    assert describe_other_ids(tokenizer, dirs[0]) is None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    note = describe_other_ids(tokenizer, dirs[0])
    assert note is not None
    assert "adds other special tokens than tokenizer.json itself (6 of 6 probes)" in note


def test_a_vocabulary_of_words_without_an_unknown_one_is_a_tokenizer(tmp_path: Path) -> None:
    """It cannot spell every text, and says so when it is asked."""
    backend = Tokenizer(models.WordLevel({"one": 0, "two": 1, "<|end|>": 2}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.save_pretrained(tmp_path)
    assert describe_other_ids(AutoTokenizer.from_pretrained(tmp_path), tmp_path) is None
    read = read_tokenizer(tmp_path, lambda file, problem: pytest.fail(f"{file} {problem}"))
    assert read is not None
    assert read.vocab_size == 3
