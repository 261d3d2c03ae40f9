"""Tensors and files that are not what their names say: each was a pair once, and ended in a traceback "
"or numbers."""

from __future__ import annotations

import os
import shutil
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
    edit,
    put_into_another_shard,
    remove,
    several,
    shard,
    write,
)
from densepath.pair.pair import Pair, Problem, inspect_pair, load_pair

POINTER = "is a Git LFS pointer and not the file itself: run `git lfs pull` in its directory"

LOST = "they were lost when the checkpoint was saved, converted or merged; save all of it again"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def lose(*names: str) -> Damage:
    return change_tensors(
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(names)]
    )


def add(name: str) -> Damage:
    return change_tensors(lambda tensors: tensors.update({name: torch.ones(4, 4)}))


def under(change: Callable[[str], str]) -> Damage:
    """Every tensor under another name."""

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        held = {change(name): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(held)

    return change_tensors(damage)


#: Faults of the tensors' names and shapes: each was accepted once, and ended in a traceback or in numbers.
DOES_THAT = "(--fix-names of serve, check and score does that)"
TENSOR_PROBLEMS: dict[str, tuple[Damage, str]] = {
    **{
        name: (
            lose(name),
            f"{WEIGHTS}: lacks 1 of the 21 tensors that LlamaForCausalLM needs ({name}): {LOST}",
        )
        for name in (
            Q_PROJ,
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.0.input_layernorm.weight",
            "model.embed_tokens.weight",
            "model.norm.weight",
        )
    },
    "no head": (
        lose("lm_head"),
        f"{WEIGHTS}: lacks 1 of the 21 tensors that LlamaForCausalLM needs (lm_head.weight): "
        f"config.json does not "
        "tie it to the embedding; if the model was trained with a tied head, set tie_word_embeddings to "
        "true, otherwise save the head too",
    ),
    "a layer is lost": (
        lose("model.layers.1."),
        f"{WEIGHTS}: lacks 9 of the 21 tensors that LlamaForCausalLM needs "
        f"(model.layers.1.self_attn.q_proj.weight, "
        "model.layers.1.self_attn.k_proj.weight, model.layers.1.self_attn.v_proj.weight and 6 more): "
        "config.json "
        "gives 2 layers (num_hidden_layers); are the last ones in another file?",
    ),
    "lost from a shard": (
        several(lose(Q_PROJ), shard),
        f"{INDEX}: lacks 1 of the 21 tensors that LlamaForCausalLM needs ({Q_PROJ}): {LOST}",
    ),
    "another shape": (
        change_tensors(lambda tensors: tensors.update({Q_PROJ: torch.ones(32, 64)})),
        f"{WEIGHTS}: has 1 tensors with another shape than config.json gives ({Q_PROJ} is [32, 64] "
        f"instead of [64, 64]): "
        "take the config.json and the weights from the same checkpoint",
    ),
    "compiled": (
        under(lambda name: f"_orig_mod.{name}"),
        f"{WEIGHTS}: 21 names hold `_orig_mod.` (_orig_mod.lm_head.weight, "
        f"_orig_mod.model.embed_tokens.weight, "
        "_orig_mod.model.layers.0.input_layernorm.weight and 18 more): the checkpoint was saved from a "
        "compiled "
        "model; strip `_orig_mod.` from every name " + DOES_THAT,
    ),
    "layers compiled": (
        under(lambda name: name.replace("layers.1.", "layers.1._orig_mod.")),
        f"{WEIGHTS}: 9 names hold `_orig_mod.` (model.layers.1._orig_mod.input_layernorm.weight, "
        "model.layers.1._orig_mod.mlp.down_proj.weight, model.layers.1._orig_mod.mlp.gate_proj.weight "
        "and 6 more): "
        "the checkpoint was saved from a compiled model; strip `_orig_mod.` from every name " + DOES_THAT,
    ),
    "wrapped": (
        under(lambda name: f"module.{name}"),
        f"{WEIGHTS}: 21 names hold `module.` (module.lm_head.weight, module.model.embed_tokens.weight, "
        "module.model.layers.0.input_layernorm.weight and 18 more): the checkpoint was saved from a "
        "wrapped model "
        "(DDP or DeepSpeed); strip `module.` from every name " + DOES_THAT,
    ),
    "no prefix": (
        under(lambda name: name.removeprefix("model.")),
        f"{WEIGHTS}: 20 names lack `model.` (embed_tokens.weight, layers.0.input_layernorm.weight, "
        "layers.0.mlp.down_proj.weight and 17 more): the checkpoint was saved from the model without "
        "its head; add "
        "`model.` at their start, or save the model with its head " + DOES_THAT,
    ),
    **{
        name: (
            add(name),
            f"{WEIGHTS}: has 1 tensors that LlamaForCausalLM does not know ({name}): the head of a "
            f"value or reward "
            "model was saved with it; save the language model alone",
        )
        for name in ("v_head.summary.weight", "score.weight")
    },
    "an adapter is left": (
        add("model.layers.0.self_attn.q_proj.lora_A.default.weight"),
        f"{WEIGHTS}: has 1 tensors that LlamaForCausalLM does not know "
        "(model.layers.0.self_attn.q_proj.lora_A.default.weight): an adapter was left in; merge it into "
        "the model and "
        "save it again",
    ),
    "quantised without a word": (
        add("model.layers.0.self_attn.q_proj.weight_scale"),
        f"{WEIGHTS}: has 1 tensors that LlamaForCausalLM does not know "
        "(model.layers.0.self_attn.q_proj.weight_scale): the weights are quantised, but config.json has no "
        "quantization_config; save both together",
    ),
    "whole numbers": (
        change_tensors(lambda tensors: tensors.update({Q_PROJ: torch.ones(64, 64, dtype=torch.int8)})),
        f"{WEIGHTS}: has 1 tensors that are not floats of 16 bits or more ({Q_PROJ} is I8): store them as "
        "floats, or put the quantization_config that they need into config.json",
    ),
    "tied, and two tensors": (
        edit("config.json", tie_word_embeddings=True),
        f"{WEIGHTS}: lm_head.weight differs from model.embed_tokens.weight, but config.json ties them: set "
        "tie_word_embeddings to false, or remove lm_head.weight",
    ),
    "a tensor in two shards": (
        several(shard, put_into_another_shard),
        "b.safetensors: holds lm_head.weight, which another shard holds too: keep one of each",
    ),
    "a Git LFS pointer": (
        write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        f"{WEIGHTS}: {POINTER}",
    ),
    "a Git LFS pointer for the tokenizer": (
        write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        f"tokenizer.json: {POINTER}",
    ),
    "a web page": (
        write(WEIGHTS, "<!DOCTYPE html><html><body>Please log in</body></html>"),
        f"{WEIGHTS}: is a web page and not the file itself: download it again, and log in first if "
        f"that is needed",
    ),
    "pickled under another name": (
        lambda d: torch.save({"x": torch.ones(2)}, d / WEIGHTS),
        f"{WEIGHTS}: is a PyTorch pickle in spite of its name: convert it to safetensors",
    ),
    "a link to nothing": (
        several(remove(WEIGHTS), lambda d: (d / WEIGHTS).symlink_to("../blobs/4d7a")),
        f"{WEIGHTS}: is a symbolic link to a missing file: download the file, or copy it here",
    ),
    "config is a link to nothing": (
        several(remove("config.json"), lambda d: (d / "config.json").symlink_to("../blobs/4d7a")),
        "config.json: is a symbolic link to a missing file: download the file, or copy it here",
    ),
    "a directory for a file": (
        several(remove(WEIGHTS), lambda d: (d / WEIGHTS).mkdir()),
        f"{WEIGHTS}: is a directory: it must be a file",
    ),
    "a download that is not finished": (
        several(remove(WEIGHTS), write("model.safetensors.incomplete", "x")),
        f"{WEIGHTS}: is missing, and a download of it is not finished: weights must be in {WEIGHTS}, or "
        f"in shards "
        f"that {INDEX} names",
    ),
}


@pytest.fixture
def inspect(dirs: tuple[Path, Path], tmp_path: Path) -> Callable[..., Pair | list[Problem]]:
    return lambda **options: inspect_pair(*dirs, cache_dir=tmp_path / "cache", **options)


def problems_of(found: Pair | list[Problem]) -> list[str]:
    assert isinstance(found, list)
    return [str(problem) for problem in found]


@pytest.mark.parametrize("name", TENSOR_PROBLEMS)
def test_fault_is_told_in_one_line(name: str, dirs: tuple[Path, Path], inspect: Any, tmp_path: Path) -> None:
    damage, expected = TENSOR_PROBLEMS[name]
    damage(dirs[0])
    assert problems_of(inspect()) == [f"sft: {expected}"]
    assert str(tmp_path) not in expected


def test_tied_head_that_repeats_the_embedding(dirs: tuple[Path, Path], inspect: Any) -> None:
    change_tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(dirs[0])
    edit("config.json", tie_word_embeddings=True)(dirs[0])
    assert isinstance(inspect(), Pair)


def test_mixture_without_an_expert(tmp_path: Path) -> None:
    """One expert's projection: the engine would take what its memory holds for it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sft = make_checkpoint(tmp_path / "sft", "qwen3")
    config = AutoConfig.for_model(
        "qwen3_moe", hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_experts=4, num_experts_per_tok=2,
        vocab_size=320, max_position_embeddings=1024,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(sft)
    assert problems_of(inspect_pair(sft, sft, cache_dir=tmp_path / "cache")) == [f"pair: {SAME}"]
    lost = "model.layers.1.mlp.experts.2.up_proj.weight"
    lose(lost)(sft)
    (problem,) = problems_of(inspect_pair(sft, sft, allow_same=True, cache_dir=tmp_path / "cache"))[:1]
    assert problem.startswith(f"sft: {WEIGHTS}: lacks 1 of the ")
    assert f"({lost})" in problem


def test_quantised_weights_are_not_compared(dirs: tuple[Path, Path], inspect: Any) -> None:
    edit("config.json", quantization_config={"quant_method": "fp8"})(dirs[0])
    add("model.layers.0.self_attn.q_proj.weight_scale")(dirs[0])
    found = inspect()
    assert isinstance(found, Pair)
    assert found.notes == (
        "sft: The weights are quantised (fp8), so the shapes of their tensors were not compared with the "
        "architecture.",
    )


def test_architecture_that_transformers_lacks_is_not_compared(dirs: tuple[Path, Path], inspect: Any) -> None:
    edit("config.json", architectures=["AquilaForCausalLM"])(dirs[0])
    found = inspect()
    assert isinstance(found, Pair)
    assert found.notes == (
        "sft: transformers cannot build AquilaForCausalLM from config.json, so the tensors were not "
        "compared with the architecture.",
    )


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"])
def test_file_without_read_permission(
    file: str, dirs: tuple[Path, Path], inspect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, who may read everything: the refusal is the file system's in words alone."""
    real = Path.open

    def refuse(path: Path, *words: Any, **options: Any) -> Any:
        if path == dirs[0] / file:
            raise PermissionError(13, "Permission denied")
        return real(path, *words, **options)

    monkeypatch.setattr(Path, "open", refuse)
    expected = f"sft: {file}: cannot be read by this user: give it read permission"
    assert problems_of(inspect()) == [expected]


def test_directory_without_permission(
    dirs: tuple[Path, Path], inspect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == dirs[0]:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    expected = "sft: cannot be read by this user: give the directory read and search permission"
    assert problems_of(inspect()) == [expected]


@pytest.mark.parametrize("place", ["local", "hub"])
def test_download_that_is_not_finished(place: str, dirs: tuple[Path, Path], tmp_path: Path) -> None:
    """`hf download --local-dir` and the hub's cache keep what is not finished apart."""
    sft = dirs[0]
    if place == "hub":
        sft = dirs[0].rename(
            (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
            or tmp_path / "models--a--b" / "snapshots" / "0123"
        )
        part = tmp_path / "models--a--b" / "blobs" / "4d7a.incomplete"
    else:
        part = sft / ".cache" / "huggingface" / "download" / "x.4d7a.incomplete"
    part.parent.mkdir(parents=True)
    part.write_text("")
    shard(sft)
    (sft / "b.safetensors").unlink()
    (problem,) = problems_of(inspect_pair(sft, dirs[1], cache_dir=tmp_path / "cache"))
    assert problem == (
        f"sft: {INDEX}: names b.safetensors, which is missing, and a download of it is not finished: "
        "every shard must be in the directory"
    )


SAME = (
    "the sft and the reference hold the same weights, so every reward is 0: "
    "name two checkpoints of a run, or add --allow-same"
)


@pytest.mark.parametrize("how", ["the same", "a link", "a copy"])
def test_the_same_twice_is_refused_unless_it_is_asked_for(
    how: str, dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    if how == "a link":
        other.symlink_to(dirs[0])
    elif how == "a copy":
        shutil.copytree(dirs[0], other)
    else:
        other = dirs[0] / ".." / dirs[0].name
    cache = tmp_path / "cache"
    assert problems_of(inspect_pair(dirs[0], other, cache_dir=cache)) == [f"pair: {SAME}"]
    pair = load_pair(dirs[0], other, allow_same=True, cache_dir=cache)
    assert pair.notes == ("the sft and the reference hold the same weights, so every reward is 0.",)


def test_the_same_weights_under_two_configs(dirs: tuple[Path, Path], inspect: Any) -> None:
    shutil.copy(dirs[0] / WEIGHTS, dirs[1] / WEIGHTS)
    edit("config.json", rms_norm_eps=1e-3)(dirs[1])
    (problem,) = problems_of(inspect())
    assert "so rewards come from their configs alone" in problem


DTYPES = [
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float16),
    (torch.float32, torch.bfloat16),
]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_two_dtypes_are_told(dtypes: tuple[torch.dtype, torch.dtype], tmp_path: Path) -> None:
    sft = make_checkpoint(tmp_path / "sft", seed=1, dtype=dtypes[0])
    reference = make_checkpoint(tmp_path / "reference", seed=2, dtype=dtypes[1])
    pair = load_pair(sft, reference, cache_dir=tmp_path / "cache")
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    assert [pair.dtype, pair.reference_dtype] == names
    assert pair.notes == (
        f"The sft is stored in {names[0]} and the reference in {names[1]}; each is computed in its own "
        "dtype, unless --dtype says otherwise: --dtype float32 rounds neither, and adds no noise to the "
        "rewards.",
    )


def test_nothing_is_noted_of_a_plain_pair(inspect: Any) -> None:
    pair = inspect()
    assert isinstance(pair, Pair)
    assert (pair.notes, pair.sources) == ((), ("sft", "reference"))
