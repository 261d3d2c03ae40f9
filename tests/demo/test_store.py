"""A tiny recipe from end to end: what is on disk, what loads, what counts as built."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from densepath.demo import Demo, Recipe, build, builder, default_directory
from densepath.demo.store import read
from densepath.demo.task import OPERATIONS
from densepath.pair.pair import load_pair

TINY = Recipe(
    hidden_size=32,
    intermediate_size=32,
    layers=1,
    heads=1,
    pretraining_steps=12,
    pretraining_batch=8,
    warmup_steps=2,
    training_demonstrations=16,
    validation_demonstrations=8,
    sft_batch=8,
    sft_rate=1e-2,
    sft_steps=12,
    validate_every=4,
    patience=1,
    held_out=6,
)
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def _silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Demo:
    return build(tmp_path_factory.mktemp("cache") / "deep" / "demo", _silent, TINY)


def test_every_checkpoint_is_in_hugging_face_form(demo):
    for directory in (demo.sft, demo.reference_half, demo.reference_base):
        assert {path.name for path in directory.iterdir()} >= FILES
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        assert model.dtype == torch.float32
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert model.config.head_dim >= 32


def test_either_reference_makes_a_pair(demo, tmp_path):
    versions = set()
    for reference in (demo.reference_half, demo.reference_base):
        pair = load_pair(demo.sft, reference, cache_dir=tmp_path)
        assert pair.vocab_size == 262
        assert pair.context_length == TINY.context_length
        versions.add(pair.version)
    assert len(versions) == 2


def test_checkpoints_differ(demo):
    weights = {
        d.joinpath("model.safetensors").read_bytes()
        for d in (demo.sft, demo.reference_half, demo.reference_base)
    }
    assert len(weights) == 3


def test_examples_and_measurements(demo):
    assert len(demo.examples) == TINY.held_out
    example = demo.examples[0]
    operation, word = example.messages[0]["content"].split(": ")
    assert example.messages[0]["role"] == "user"
    assert example.response == OPERATIONS[operation](word)
    found = demo.measurements
    assert set(found["exact_match"]) == {"sft", "reference-half", "reference-base"}
    assert len(found["wrong_token"]) == len(found["right_above_other"]) == 5
    assert found["sft"]["half_samples"] * 2 == found["sft"]["samples"]
    assert found["parameters"] > 0


def test_second_build_returns_at_once(demo, monkeypatch):
    monkeypatch.setattr(builder, "build_into", _refuse)
    assert build(demo.directory, _silent, TINY) == demo


def test_same_recipe_builds_the_same_bits(demo, tmp_path):
    again = build(tmp_path / "demo", _silent, TINY)
    for path in sorted(demo.directory.rglob("*.*")):
        if path.is_file() and path.name != "manifest.json":
            assert (again.directory / path.relative_to(demo.directory)).read_bytes() == path.read_bytes(), (
                path
            )
    assert again.measurements["wrong_token"] == demo.measurements["wrong_token"]
    assert again.measurements["exact_match"] == demo.measurements["exact_match"]
    assert again.examples == demo.examples


def test_another_seed_builds_other_weights(demo, tmp_path):
    other = build(tmp_path / "demo", _silent, replace(TINY, seed=1))
    assert (other.sft / "model.safetensors").read_bytes() != (demo.sft / "model.safetensors").read_bytes()


def test_torch_is_left_as_it_was(tmp_path):
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    build(tmp_path / "demo", _silent, TINY)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("stage", ["pretraining", "fine-tuning", "measuring"])
def test_interrupted_build_leaves_nothing(tmp_path, stage):
    directory = tmp_path / "demo"

    def interrupt(reached: str, done: int, total: int) -> None:
        if reached == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(directory, interrupt, TINY)
    assert not directory.exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_killed_build_leaves_nothing_that_counts(tmp_path):
    directory = tmp_path / "demo"
    # The last moment before the folder is renamed: everything has been written under the partial name.
    script = (
        "import os, pathlib, signal, sys, types; from densepath.demo import store\n"
        "builder = types.SimpleNamespace(build_into=lambda folder, recipe, progress: ([], {}))\n"
        "sys.modules['densepath.demo.builder'] = builder\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.build(pathlib.Path(sys.argv[1]), lambda *a: None)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(directory)], check=False, timeout=60)
    assert killed.returncode == -9
    assert (tmp_path / ".demo.partial" / "manifest.json").is_file()
    assert read(directory, Recipe()) is None
    build(directory, _silent, TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".demo.lock", "demo"]


def test_two_builds_at_once_train_once(tmp_path, monkeypatch):
    calls, entered, leave = [], threading.Event(), threading.Event()

    def slow(folder: Path, recipe: Recipe, progress: object) -> tuple[list[object], dict[str, object]]:
        calls.append(folder)
        entered.set()
        assert leave.wait(30)
        return [], {}

    monkeypatch.setattr(builder, "build_into", slow)
    first = threading.Thread(target=build, args=(tmp_path / "demo", _silent, TINY))
    second = threading.Thread(target=build, args=(tmp_path / "demo", _silent, TINY))
    first.start()
    assert entered.wait(30)
    second.start()
    leave.set()
    first.join(30)
    second.join(30)
    assert len(calls) == 1
    assert read(tmp_path / "demo", TINY) is not None


def test_another_recipe_or_broken_manifest_is_not_this_demo(demo, tmp_path):
    assert read(demo.directory, replace(TINY, seed=2)) is None
    (tmp_path / "manifest.json").write_text("{")
    assert read(tmp_path, TINY) is None
    (tmp_path / "manifest.json").write_text(json.dumps([TINY.hash]))
    assert read(tmp_path, TINY) is None


def test_never_builds_over_something_else(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "build_into", _refuse)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        build(tmp_path, _silent, TINY)
    with pytest.raises(FileExistsError, match="holds something else"):
        build(demo.directory, _silent, replace(TINY, seed=2))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_default_directory_names_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "densepath" / f"demo-{Recipe().hash}"
    assert default_directory(TINY).name != default_directory().name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory().parent == tmp_path / ".cache" / "densepath"


@pytest.mark.parametrize(("name", "value"), [("validate_every", 3), ("training_demonstrations", 17)])
def test_recipe_refuses_what_has_no_half(name, value):
    with pytest.raises(ValueError, match=name):
        replace(TINY, **{name: value})


def test_importing_loads_no_torch():
    script = "import sys, densepath.demo; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"


def _refuse(*_: object) -> None:
    raise AssertionError("this must not build")
