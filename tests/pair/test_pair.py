"""What is a pair and what is not: each problem is made by really damaging a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import make_checkpoint
from damage import (
    INDEX,
    WEIGHTS,
    Damage,
    change_tensors,
    corrupt_header,
    edit,
    edit_tokenizer,
    remove,
    rename,
    set_values,
    several,
    shard,
    shard_and,
    spoil_all,
    swap_two_ids,
    truncate,
    write,
)
from densepath.errors import InvalidPairError
from densepath.pair.pair import Pair, Problem, inspect_pair, load_pair

Inspect = Callable[[], Pair | list[Problem]]


@pytest.fixture
def inspect(dirs: tuple[Path, Path], tmp_path: Path) -> Inspect:
    return lambda: inspect_pair(*dirs, cache_dir=tmp_path / "cache")


def pair_of(found: Pair | list[Problem]) -> Pair:
    assert isinstance(found, Pair), [str(problem) for problem in found]
    return found


MISSING = f"is missing: weights must be in {WEIGHTS}, or in shards that {INDEX} names"
REMOTE = "has an auto_map: remote code is never run, so the checkpoint must load without it"
NOT_SAME = "different in the two; the reference must have the sft's"
REFUSED = "is refused by transformers: its model_type must be known, and its fields must have valid types"
NO_JSON = "cannot be read as JSON: it must be a JSON object"
DAMAGED = "is truncated or corrupt: it must be a complete safetensors file"
FINITE = "weights must be finite"

#: What is done to the sft, and the one problem that must be found, without the leading "sft: ".
SFT_PROBLEMS: dict[str, tuple[Damage, str]] = {
    "not a directory": (
        shutil.rmtree,
        "is not a directory: it must be a model directory in Hugging Face form",
    ),
    "no config": (remove("config.json"), "config.json: is missing: a model directory must have one"),
    "config is not JSON": (write("config.json", "{"), f"config.json: {NO_JSON}"),
    "config is nested deep": (write("config.json", "[" * 100_000), f"config.json: {NO_JSON}"),
    "config is a list": (write("config.json", "[]"), "config.json: is not a JSON object: it must be one"),
    "no architectures": (
        edit("config.json", architectures=None),
        "config.json: has no architectures: it must name the model's class",
    ),
    "a classifier": (
        edit("config.json", architectures=["LlamaForSequenceClassification"]),
        "config.json: names another architecture: it must be one *ForCausalLM class",
    ),
    "unknown model type": (
        edit("config.json", model_type="nobody-knows"),
        f"config.json: {REFUSED}",
    ),
    "config field of another type": (
        edit("config.json", hidden_size="64"),
        f"config.json: {REFUSED}",
    ),
    "generation config is not JSON": (
        write("generation_config.json", "no"),
        f"generation_config.json: {NO_JSON}",
    ),
    "config with remote code": (
        edit("config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        f"config.json: {REMOTE}",
    ),
    "tokenizer with remote code": (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Slow", "evil.Fast"]}),
        f"tokenizer_config.json: {REMOTE}",
    ),
    "pickled weights": (
        rename(WEIGHTS, "pytorch_model.bin"),
        f"{WEIGHTS}: is missing, and the weights are pickled: convert them to safetensors",
    ),
    "no weights": (remove(WEIGHTS), f"{WEIGHTS}: {MISSING}"),
    "weights of another name": (rename(WEIGHTS, "adapter_model.safetensors"), f"{WEIGHTS}: {MISSING}"),
    "weights beside weights": (
        lambda d: shutil.copy(d / WEIGHTS, d / "consolidated.safetensors"),
        f"{WEIGHTS}: is not the only safetensors file (consolidated.safetensors): "
        f"keep one, or name shards in {INDEX}",
    ),
    "truncated": (truncate, f"{WEIGHTS}: {DAMAGED}"),
    "corrupt header": (corrupt_header, f"{WEIGHTS}: {DAMAGED}"),
    "empty file": (write(WEIGHTS, ""), f"{WEIGHTS}: is empty: write or download it again"),
    "no tensors": (
        change_tensors(lambda tensors: tensors.clear()),
        f"{WEIGHTS}: holds no tensors: it must hold the model's weights",
    ),
    "index is not JSON": (several(shard, write(INDEX, "{,")), f"{INDEX}: {NO_JSON}"),
    "index without a map": (
        several(shard, write(INDEX, "{}")),
        f"{INDEX}: has no weight_map: it must give the file of each tensor",
    ),
    "index names a missing shard": (
        several(shard, remove("b.safetensors")),
        f"{INDEX}: names b.safetensors, which is missing: every shard must be in the directory",
    ),
    "index names a missing tensor": (
        shard_and(lambda weight_map: weight_map.update({"lost.weight": "a.safetensors"})),
        f"{INDEX}: names lost.weight in a.safetensors, which has no such tensor",
    ),
    "index leads out of the directory": (
        shard_and(lambda weight_map: weight_map.update({"x": "../reference/model.safetensors"})),
        f"{INDEX}: names a shard outside the directory: shards must be in the directory of the index",
    ),
    "index beside a whole file": (
        several(shard, lambda d: shutil.copy(d / "a.safetensors", d / WEIGHTS)),
        f"{WEIGHTS}: is in the same directory as {INDEX}, which does not name it: keep one or the other",
    ),
    "truncated shard": (
        several(shard, lambda d: os.truncate(d / "b.safetensors", 500)),
        f"b.safetensors: {DAMAGED}",
    ),
    "NaN weights": (
        set_values("model.norm.weight", float("nan"), 3),
        f"{WEIGHTS}: has NaN or infinite values in model.norm.weight (3): {FINITE}",
    ),
    "bf16 NaN": (
        several(
            change_tensors(lambda t: t.update({name: x.bfloat16() for name, x in t.items()})),
            set_values("lm_head.weight", float("nan"), 2),
        ),
        f"{WEIGHTS}: has NaN or infinite values in lm_head.weight (2): {FINITE}",
    ),
    "infinite weights in a shard": (
        several(set_values("lm_head.weight", float("-inf"), 5), shard),
        f"a.safetensors: has NaN or infinite values in lm_head.weight (5): {FINITE}",
    ),
    "no fast tokenizer file": (
        remove("tokenizer.json"),
        "tokenizer.json: is missing: copy the base model's tokenizer here, or save a fast tokenizer",
    ),
    "slow tokenizer class": (
        write("tokenizer_config.json", '{"tokenizer_class": "CanineTokenizer"}'),
        "tokenizer_config.json: names a tokenizer class that has no fast version: it must have one",
    ),
    "tokenizer is not a tokenizer": (
        write("tokenizer.json", "{}"),
        "tokenizer.json: is refused by transformers: it must be a tokenizer as save_pretrained writes it",
    ),
    "tokenizer config is not JSON": (
        write("tokenizer_config.json", "?"),
        f"tokenizer_config.json: {NO_JSON}",
    ),
}

#: What is done to the reference, and the problems that must be found between the two.
PAIR_PROBLEMS: dict[str, tuple[Damage, list[str]]] = {
    "vocabulary": (edit_tokenizer(swap_two_ids), [f"tokenizer.json: vocabulary: {NOT_SAME} tokenizer"]),
    "merges": (
        edit_tokenizer(lambda t: t["model"]["merges"].pop()),
        [f"tokenizer.json: merges: {NOT_SAME} tokenizer"],
    ),
    "model settings": (
        edit_tokenizer(lambda t: t["model"].update(byte_fallback=True)),
        [f"tokenizer.json: model settings: {NOT_SAME} tokenizer"],
    ),
    "normalizer": (
        edit_tokenizer(lambda t: t.update(normalizer={"type": "NFC"})),
        [f"tokenizer.json: normalizer: {NOT_SAME} tokenizer"],
    ),
    "pre-tokenizer": (
        edit_tokenizer(lambda t: t["pre_tokenizer"].update(add_prefix_space=True)),
        [f"tokenizer.json: pre tokenizer: {NOT_SAME} tokenizer"],
    ),
    "added tokens": (
        edit_tokenizer(lambda t: t["added_tokens"][3].update(special=False)),
        [f"tokenizer.json: added tokens: {NOT_SAME} tokenizer"],
    ),
    "BOS": (
        edit("tokenizer_config.json", bos_token="<|system|>"),
        [f"tokenizer.json: BOS token: {NOT_SAME} tokenizer"],
    ),
    "EOS": (
        edit("tokenizer_config.json", eos_token="<|user|>"),
        [f"tokenizer.json: EOS token: {NOT_SAME} tokenizer"],
    ),
    "chat template": (
        write("chat_template.jinja", "{{ messages }}"),
        [f"tokenizer_config.json: chat template: {NOT_SAME}"],
    ),
    "no chat template": (
        remove("chat_template.jinja"),
        [f"tokenizer_config.json: chat template: {NOT_SAME}"],
    ),
}


@pytest.mark.parametrize("name", SFT_PROBLEMS)
def test_damage_to_one_model_is_named(
    name: str, dirs: tuple[Path, Path], inspect: Inspect, tmp_path: Path
) -> None:
    damage, expected = SFT_PROBLEMS[name]
    damage(dirs[0])
    found = inspect()
    assert isinstance(found, list)
    assert [str(problem) for problem in found] == [f"sft: {expected}"]
    assert str(tmp_path) not in str(found)


@pytest.mark.parametrize("name", PAIR_PROBLEMS)
def test_row_30_difference_between_the_two_is_named(
    name: str, dirs: tuple[Path, Path], inspect: Inspect
) -> None:
    damage, expected = PAIR_PROBLEMS[name]
    damage(dirs[1])
    found = inspect()
    assert isinstance(found, list)
    assert [str(problem) for problem in found] == [f"pair: {problem}" for problem in expected]


def test_row_30_every_problem_is_in_the_error(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    sft, reference = dirs
    change_tensors(spoil_all)(sft)
    edit("config.json", architectures=None)(reference)
    truncate(reference)
    with pytest.raises(InvalidPairError) as error:
        load_pair(sft, reference, cache_dir=tmp_path / "cache")
    assert error.value.code == "invalid_pair"
    assert error.value.message.startswith("not a pair: reference: config.json: has no architectures")
    assert f"reference: {WEIGHTS}: is truncated" in error.value.message
    assert "lm_head.weight (1), " in error.value.message
    assert "and 18 more: weights must be finite" in error.value.message
    assert str(tmp_path) not in error.value.message


@pytest.mark.parametrize("rows", [(384, 320), (320, 384)])
def test_row_15_valid_ids_are_the_rows_that_both_have(rows: tuple[int, int], tmp_path: Path) -> None:
    dirs = [
        make_checkpoint(tmp_path / name, seed=n, vocab_size=rows[n])
        for n, name in enumerate(("sft", "reference"))
    ]
    pair = load_pair(*dirs, cache_dir=tmp_path / "cache")
    assert (pair.vocab_size, pair.embedding_size) == (300, 320)


def test_more_ids_than_rows(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "sft", vocab_size=256)
    found = inspect_pair(directory, directory, allow_same=True, cache_dir=tmp_path / "cache")
    assert isinstance(found, list)
    message = (
        "tokenizer.json: has ids up to 299, but the embedding has 256 rows: "
        "vocab_size must be larger than every id"
    )
    assert [str(problem) for problem in found] == [f"sft: {message}", f"reference: {message}"]


def test_rows_36_37_remote_code_and_pickles_are_not_run(dirs: tuple[Path, Path], inspect: Inspect) -> None:
    sft, reference = dirs
    marker = sft / "ran"
    for directory in dirs:
        (directory / "evil.py").write_text(
            f"open({str(marker)!r}, 'w')\nclass Fast: ...\nclass Config: ...\n"
        )
    edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Slow", "evil.Fast"]})(sft)
    edit("config.json", auto_map={"AutoConfig": "evil.Config"}, model_type="evil")(reference)
    (sft / WEIGHTS).unlink()
    (sft / "pytorch_model.bin").write_bytes(f"cbuiltins\nopen\n(S{str(marker)!r}\nS'w'\ntR.".encode())
    assert isinstance(found := inspect(), list)
    assert len(found) == 3
    assert not marker.exists()


def test_pair_says_what_it_is(dirs: tuple[Path, Path], inspect: Inspect) -> None:
    sft, reference = dirs
    edit("generation_config.json", eos_token_id=[2, 4])(sft)
    edit("config.json", eos_token_id=[5])(sft)
    edit("config.json", max_position_embeddings=512)(reference)
    pair = pair_of(inspect())
    assert (pair.sft, pair.reference) == dirs
    assert (pair.vocab_size, pair.embedding_size, pair.context_length) == (300, 320, 512)
    assert pair.eos_token_ids == {2, 4, 5}
    assert pair.dtype == "float32"
    assert pair.architectures == ("LlamaForCausalLM", "LlamaForCausalLM")
    for digest in (pair.version, pair.tokenizer_fingerprint, pair.chat_template_fingerprint):
        assert digest is not None
        assert len(bytes.fromhex(digest)) == 16


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"])
def test_architectures(architecture: Any, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if architecture == "qwen3" else torch.float32
    sft = make_checkpoint(tmp_path / "sft", architecture, seed=1, layers=3, dtype=dtype)
    reference = make_checkpoint(tmp_path / "reference", architecture, seed=2, hidden_size=32, dtype=dtype)
    pair = pair_of(inspect_pair(sft, reference, cache_dir=tmp_path / "cache"))
    assert pair.dtype == str(dtype).removeprefix("torch.")
    assert pair.vocab_size == 300


def test_pair_without_chat_template(dirs: tuple[Path, Path], inspect: Inspect) -> None:
    for directory in dirs:
        (directory / "chat_template.jinja").unlink()
    assert pair_of(inspect()).chat_template_fingerprint is None


CHANGES: dict[str, Damage] = {
    "weights": set_values("lm_head.weight", 0.25, 1),
    "config": edit("config.json", rms_norm_eps=1e-5),
    "generation config": edit("generation_config.json", eos_token_id=[2, 3]),
}
NO_CHANGES: dict[str, Damage] = {
    "times": lambda d: [os.utime(file, (1, 1)) for file in d.iterdir()],
    "config written by another": edit("config.json", transformers_version="4.0", _name_or_path="elsewhere"),
    "config in another order": lambda d: (d / "config.json").write_text(
        json.dumps(dict(reversed(json.loads((d / "config.json").read_text()).items())))
    ),
    "readme": write("README.md", "words"),
    "padding of a tokenizer's last call": edit_tokenizer(
        lambda t: t.update(
            truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
        )
    ),
}


@pytest.mark.parametrize("side", [0, 1], ids=["sft", "reference"])
@pytest.mark.parametrize("name", [*CHANGES, *NO_CHANGES])
def test_version_follows_content(name: str, side: int, dirs: tuple[Path, Path], inspect: Inspect) -> None:
    before = pair_of(inspect()).version
    (CHANGES | NO_CHANGES)[name](dirs[side])
    assert (pair_of(inspect()).version != before) == (name in CHANGES)


def test_version_follows_tokenizer_and_template(dirs: tuple[Path, Path], inspect: Inspect) -> None:
    pairs = [pair_of(inspect())]
    for change in (
        edit("tokenizer_config.json", bos_token="<|system|>"),
        write("chat_template.jinja", "{{ 1 }}"),
    ):
        for directory in dirs:
            change(directory)
        pairs.append(pair_of(inspect()))
    assert len({pair.version for pair in pairs}) == 3
    assert len({pair.tokenizer_fingerprint for pair in pairs}) == 2
    assert len({pair.chat_template_fingerprint for pair in pairs}) == 2


def test_version_knows_which_is_which_and_not_where(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    sft, reference = dirs
    cache = tmp_path / "cache"
    before = load_pair(sft, reference, cache_dir=cache).version
    assert load_pair(reference, sft, cache_dir=cache).version != before
    moved = sft.rename(tmp_path / "moved")
    assert load_pair(moved, reference, cache_dir=cache).version == before


def test_import_loads_neither_torch_nor_transformers() -> None:
    heavy = {"torch", "transformers", "vllm"}
    code = f"import sys, densepath.pair.pair; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
