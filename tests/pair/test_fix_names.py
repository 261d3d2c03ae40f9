"""`--fix-names`: checkpoints with odd names are refused, and their renamed copies equal the originals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from checkpoints import make_checkpoint
from damage import edit, shard
from densepath.commands.pairs import directories
from densepath.config import PairSettings
from densepath.engine.transformers import load_model
from densepath.errors import InvalidPairError
from densepath.pair.checkpoint import read_checkpoint
from densepath.pair.fix_names import fixed_checkpoint
from densepath.pair.pair import Pair, inspect_pair, load_pair

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

#: An odd name of each tensor, by what caused it.
ODD: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "torch.compile, each layer": lambda name: name.replace(".self_attn.", ".self_attn._orig_mod."),
    "DDP": lambda name: f"module.{name}",
    "DDP of a compiled model": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: (
        "_fsdp_wrapped_module." + name.replace("model.layers.", "model._fsdp_wrapped_module.layers.")
    ),
    "FSDP and activation checkpointing": lambda name: (
        "_fsdp_wrapped_module." + name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")
    ),
    "PEFT": lambda name: f"base_model.model.{name}",
    "a larger model": lambda name: f"language_model.{name}",
    "a larger model of transformers 5": lambda name: name.replace("model.", "model.language_model.", 1),
    "no head": lambda name: name.removeprefix("model."),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/densepath/renamed"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plain") / "model", "qwen3", seed=1)


@pytest.fixture
def odd(plain: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(plain, tmp_path / "odd"))


def rename(directory: Path, odd_name: Callable[[str], str]) -> None:
    for file in sorted(directory.glob("*.safetensors")):
        tensors = {odd_name(name): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    if (directory / INDEX).is_file():
        index = json.loads((directory / INDEX).read_text())
        index["weight_map"] = {odd_name(name): file for name, file in index["weight_map"].items()}
        (directory / INDEX).write_text(json.dumps(index))


def problems_of(directory: Path) -> list[str]:
    problems: list[str] = []
    read_checkpoint(directory, lambda *words: problems.append(": ".join(words)))
    return problems


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("cause", ODD)
def test_odd_names_are_refused_with_the_flag_and_fixed_with_it(cause: str, plain: Path, odd: Path) -> None:
    rename(odd, ODD[cause])
    assert problems_of(odd)
    assert all("--fix-names" in problem for problem in problems_of(odd)), "nothing else is wrong"
    said: list[str] = []
    fixed = fixed_checkpoint(odd, said.append)
    assert problems_of(fixed) == []
    want, got = tensors_of(plain), tensors_of(fixed)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    example = next(name for name in want if ODD[cause](name) != name)
    assert any(ODD[cause](example).partition("layers")[0] in line for line in said)
    assert any(line.startswith(f"{odd}: renaming ") for line in said)
    assert load_model(fixed).dtype == torch.float32


def test_the_message_names_the_first_odd_name_and_the_flag(odd: Path) -> None:
    rename(odd, ODD["torch.compile"])
    (problem,) = problems_of(odd)
    assert problem.startswith("model.safetensors: 25 names hold `_orig_mod.` (_orig_mod.lm_head.weight, ")
    assert problem.endswith(
        " and 22 more): the checkpoint was saved from a compiled model; strip `_orig_mod.` from every name "
        "(--fix-names of serve, check and score does that)"
    )


def test_a_copy_is_written_once_and_again_after_a_change(odd: Path, cache: Path) -> None:
    rename(odd, ODD["DDP"])
    said: list[str] = []
    first = fixed_checkpoint(odd, said.append)
    assert "writing the renamed copy, once" in said
    said.clear()
    assert fixed_checkpoint(odd, said.append) == first
    assert "writing the renamed copy, once" not in said
    assert any("renaming 25 tensors" in line for line in said), "what was renamed is listed every time"
    tensors = load_file(odd / WEIGHTS)
    tensors["module.model.norm.weight"] += 1
    save_file(tensors, odd / WEIGHTS, metadata={"format": "pt"})
    second = fixed_checkpoint(odd, said.append)
    assert second != first
    assert sorted(path.name for path in cache.iterdir() if not path.name.startswith(".")) == sorted(
        [first.name, second.name]
    )
    assert load_pair(first, second).version != load_pair(second, first).version


def test_shards_stay_shards(plain: Path, odd: Path) -> None:
    shard(odd)
    rename(odd, ODD["DDP"])
    fixed = fixed_checkpoint(odd, print)
    assert {path.name for path in fixed.glob("*.safetensors")} == {"a.safetensors", "b.safetensors"}
    pair = inspect_pair(fixed, plain, allow_same=True)
    assert isinstance(pair, Pair), pair
    assert all(torch.equal(t, tensors_of(fixed)[name]) for name, t in tensors_of(plain).items())


def test_the_other_files_are_copied_as_they_are(odd: Path) -> None:
    rename(odd, ODD["DDP"])
    (odd / "additional_chat_templates").mkdir()
    (odd / "additional_chat_templates/tools.jinja").write_text("{{ tools }}")
    fixed = fixed_checkpoint(odd, print)
    for name in ("tokenizer.json", "generation_config.json", "additional_chat_templates/tools.jinja"):
        assert (fixed / name).read_bytes() == (odd / name).read_bytes()
    with safe_open(fixed / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_is_not_odd_is_left_alone(plain: Path, cache: Path) -> None:
    said: list[str] = []
    assert fixed_checkpoint(plain, said.append) == plain
    assert said == []
    assert not cache.exists()


def test_two_names_never_become_one(odd: Path) -> None:
    tensors = load_file(odd / WEIGHTS)
    both = tensors | {f"module.{name}": tensor + 1 for name, tensor in tensors.items()}
    save_file(both, odd / WEIGHTS, metadata={"format": "pt"})
    assert fixed_checkpoint(odd, print) == odd
    assert problems_of(odd)


def test_another_fault_is_still_reported_for_the_copy(odd: Path) -> None:
    rename(odd, ODD["DDP"])
    tensors = load_file(odd / WEIGHTS)
    del tensors["module.model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, odd / WEIGHTS, metadata={"format": "pt"})
    (problem,) = problems_of(fixed_checkpoint(odd, print))
    assert "lacks 1 of the 25 tensors that Qwen3ForCausalLM needs (model.layers.1.self_attn.q_proj" in problem


def test_a_copy_that_cannot_be_written_and_an_original_that_changes(
    odd: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename(odd, ODD["DDP"])

    def change(line: str) -> None:
        if "once" in line:
            (odd / "config.json").touch()

    with pytest.raises(InvalidPairError, match=r"changed while it was copied: config.json"):
        fixed_checkpoint(odd, change)
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".")] == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        InvalidPairError, match=r"cannot be copied to .*file/densepath/renamed: Not a directory"
    ):
        fixed_checkpoint(odd, print)


def theta_of(directory: Path) -> tuple[Any, Any]:
    rope = load_model(directory).config.rope_parameters
    return rope["rope_type"], rope["rope_theta"]


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}


def test_rope_scaling_added_to_a_config_of_transformers_5(odd: Path) -> None:
    """As model cards advise for long texts. transformers and vLLM then both read 10000 as the base."""
    edit(CONFIG, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, rope_scaling=YARN)(odd)
    assert theta_of(odd) == ("yarn", 10000.0), "transformers reads it right: this is needed no more"
    (problem,) = problems_of(odd)
    assert "rope_theta in the first would be ignored" in problem
    assert "--fix-names" in problem
    said: list[str] = []
    fixed = fixed_checkpoint(odd, said.append)
    assert problems_of(fixed) == []
    assert theta_of(fixed) == ("yarn", 1e6)
    assert any("rope_scaling" in line for line in said)


def test_longrope_under_its_first_name(tmp_path: Path, odd: Path) -> None:
    rope = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "original_max_position_embeddings": 256}
    edit(CONFIG, rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "su", **rope})(odd)
    (problem,) = problems_of(odd)
    assert "calls the type in rope_scaling su, which is now called longrope" in problem
    fixed = fixed_checkpoint(odd, print)
    assert problems_of(fixed) == []
    assert theta_of(fixed) == ("longrope", 5e5)


UNCLEAR: dict[str, dict[str, Any]] = {
    "gives rope_theta 1e+06, but transformers reads 10000": {"rope_theta": 1e6},
    "gives partial_rotary_factor 0.5, but transformers reads 0.25": {
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.25},
    },
    "without a type that uses it": {"rope_parameters": None, "rope_scaling": {"factor": 4.0}},
    "gives two types in rope_scaling (dynamic and linear)": {
        "rope_parameters": None,
        "rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 4.0},
    },
    "contradict each other": {"rope_scaling": {**YARN, "rope_theta": 1e6}},
}


@pytest.mark.parametrize("words", UNCLEAR)
def test_what_only_the_user_can_decide_is_refused(words: str, odd: Path) -> None:
    edit(CONFIG, **UNCLEAR[words])(odd)
    (problem,) = problems_of(odd)
    assert words in problem
    assert fixed_checkpoint(odd, print) == odd


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 5e5, "rope_scaling": {**YARN, "type": "yarn"}},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}, "rope_scaling": YARN},
        {"rope_theta": 5e5, "torch_dtype": "float32", "dtype": None},
    ],
)
def test_old_keys_that_are_read_right_need_no_flag(fields: dict[str, Any], odd: Path) -> None:
    edit(CONFIG, **({"rope_parameters": None} | fields))(odd)
    assert problems_of(odd) == []
    assert theta_of(odd)[1] == 5e5
    assert fixed_checkpoint(odd, print) == odd


def test_the_flag_of_the_commands(plain: Path, odd: Path, cache: Path) -> None:
    rename(odd, ODD["DDP"])
    said = StringIO()
    settings = PairSettings(sft=str(odd), reference=str(plain))
    assert directories(settings, Console(file=said)) == (odd, plain)
    assert said.getvalue() == ""
    sft, reference = directories(replace(settings, fix_names=True), Console(file=said))
    assert sft.parent == cache
    assert reference == plain
    assert f"{odd}: renaming 25 tensors: module.lm_head.weight is now lm_head.weight" in said.getvalue()
