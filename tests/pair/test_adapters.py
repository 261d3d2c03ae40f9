"""LoRA adapters: merged, they compute what peft computes unmerged; what cannot be merged is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import densepath.pair.weights
from adapters import TARGETS, make_adapter
from checkpoints import make_checkpoint, make_tokenizer
from damage import change_tensors
from densepath.engine.transformers import load_model
from densepath.errors import InvalidPairError, InvalidRequestError
from densepath.pair.adapters import WEIGHTS, whole_checkpoint
from densepath.pair.checkpoint import ADAPTER_CONFIG as CONFIG
from densepath.pair.fix_names import fixed_checkpoint
from densepath.pair.merge import merge
from densepath.pair.pair import load_pair

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]
LORA: dict[str, dict[str, Any]] = {
    "LoRA": {"r": 4},
    "another rank": {"r": 7, "lora_alpha": 3},
    "rsLoRA": {"r": 4, "use_rslora": True},
    "DoRA": {"r": 4, "use_dora": True},
    "patterns": {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 32}},
    "modules_to_save": {"r": 4, "modules_to_save": ["lm_head", "embed_tokens"]},
    "embeddings": {"r": 4, "target_modules": [*TARGETS, "embed_tokens"]},
    "output embeddings": {"r": 4, "target_modules": [*TARGETS, "lm_head"]},
}
NOWHERE: Callable[[str], None] = lambda line: None  # noqa: E731


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/densepath/merged"


def logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids_1_L = torch.randint(3, 300, (1, 60), generator=generator)
    with torch.inference_mode():
        return model(ids_1_L).logits[0].float().log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", LORA)
def test_a_merged_adapter_is_peft_s_unmerged_one(
    kind: str, tie: bool, tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1, tie=tie)
    adapter = make_adapter(tmp_path / "adapter", base, **LORA[kind])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    plain_L_V = logits(model)
    want_L_V = logits(PeftModel.from_pretrained(model, adapter).eval())
    merge(adapter, base, tmp_path / "merged")
    got_L_V = logits(load_model(tmp_path / "merged"))
    difference = float((got_L_V - want_L_V).abs().max())
    say_difference(f"merged adapter: {kind}, {'tied' if tie else 'untied'}", difference)
    assert difference < 2e-5
    assert float((want_L_V - plain_L_V).abs().max()) > 0.1, "the adapter must do something"


def test_base_and_adapter_are_a_pair_and_are_merged_once(tmp_path: Path, cache: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "checkpoint-8", base, r=4)
    half = make_adapter(tmp_path / "checkpoint-4", base, seed=9, r=2)
    said: list[str] = []
    merged = whole_checkpoint(adapter, None, said.append)
    assert merged.name.startswith("checkpoint-8-")
    assert [line.partition(" ")[0] for line in said] == ["merging", "merged:"]
    assert whole_checkpoint(adapter, None, said.append) == merged
    assert len(said) == 2, "the second time, nothing is merged"
    assert whole_checkpoint(base, None, said.append) == base
    assert sorted(path.name for path in cache.iterdir() if not path.name.startswith(".")) == [merged.name]
    pair = load_pair(merged, base, cache_dir=tmp_path)
    assert (
        pair.version != load_pair(merged, whole_checkpoint(half, None, NOWHERE), cache_dir=tmp_path).version
    )


def test_weights_are_not_read_again_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "adapter", base, r=4)
    real, read = densepath.pair.weights.scan_file, []
    monkeypatch.setattr(
        densepath.pair.weights, "scan_file", lambda path, *rest: read.append(path.name) or real(path, *rest)
    )
    merged = whole_checkpoint(adapter, None, NOWHERE)
    assert sorted(read) == [WEIGHTS, "model.safetensors"]
    assert whole_checkpoint(adapter, None, NOWHERE) == merged
    load_pair(merged, base)  # of the base, the digest is known already
    assert sorted(read) == [WEIGHTS, "model.safetensors", "model.safetensors"]


def test_a_changed_base_or_adapter_is_merged_anew(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "adapter", base, r=4)
    first = whole_checkpoint(adapter, None, NOWHERE)
    make_adapter(adapter, base, seed=3, r=4)
    second = whole_checkpoint(adapter, None, NOWHERE)
    make_checkpoint(base, seed=2)
    assert len({first, second, whole_checkpoint(adapter, None, NOWHERE)}) == 3


def test_the_tokenizer_is_the_adapter_s_where_it_has_one(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "adapter", base, r=4)
    without = whole_checkpoint(adapter, None, NOWHERE)
    assert (without / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    make_tokenizer(280).save_pretrained(adapter)
    merged = whole_checkpoint(adapter, None, NOWHERE)
    assert (merged / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()


def test_a_model_that_changes_while_it_is_merged_is_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be found later under the digest of the files before the change."""
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "adapter", base, r=4)
    for changed in (base / "model.safetensors", adapter / WEIGHTS):
        before = changed.read_bytes()

        def merge(*_: Any, changed: Path = changed, before: bytes = before, **__: Any) -> Any:
            changed.write_bytes(before[:-4] + b"\0\0\0\0")
            return subprocess.CompletedProcess([], 0, "", "")

        monkeypatch.setattr(subprocess, "run", merge)
        with pytest.raises(InvalidPairError, match=f"{changed} has changed while the adapter"):
            whole_checkpoint(adapter, None, NOWHERE)
        assert [path for path in cache.iterdir() if not path.name.endswith(".lock")] == []
        changed.write_bytes(before)


def test_the_base_model_may_have_moved(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "adapter", base, r=4)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(
        InvalidRequestError, match=r"its base model .*base is not a model directory here: give"
    ):
        whole_checkpoint(adapter, None, NOWHERE)
    with pytest.raises(InvalidRequestError, match=r"--base must be the directory of a whole model"):
        whole_checkpoint(adapter, adapter, NOWHERE)
    assert (whole_checkpoint(adapter, moved, NOWHERE) / "model.safetensors").is_file()


def edit(adapter: Path, **fields: Any) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | fields))


def test_what_cannot_be_merged_is_refused_in_one_sentence(tmp_path: Path, cache: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "adapter", base, r=4)

    def refusal(change: Callable[[Path], object]) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(adapter, copy)
        change(copy)
        with pytest.raises((InvalidPairError, InvalidRequestError)) as refused:
            whole_checkpoint(copy, None, NOWHERE)
        message = str(refused.value)
        assert "Traceback" not in message
        assert len(message.splitlines()) == 1
        return message

    other = make_checkpoint(tmp_path / "other", seed=1, hidden_size=128)
    assert "cannot be read as the config" in refusal(lambda copy: (copy / CONFIG).write_text("{"))
    assert "names no base model" in refusal(lambda copy: edit(copy, base_model_name_or_path=None))
    assert "pickled files are never loaded" in refusal(lambda copy: (copy / WEIGHTS).unlink())
    quantised = shutil.copytree(base, tmp_path / "quantised")
    model_config = json.loads((base / "config.json").read_text())
    method = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (quantised / "config.json").write_text(json.dumps(model_config | method))
    assert "its weights are quantised; give the full-precision base model by --base" in refusal(
        lambda copy: edit(copy, base_model_name_or_path=str(quantised))
    )
    assert "size mismatch" in refusal(lambda copy: edit(copy, base_model_name_or_path=str(other)))
    assert "trains biases" in refusal(lambda copy: edit(copy, bias="all"))
    fewer = refusal(lambda copy: edit(copy, target_modules=["q_proj"]))
    assert "of its tensors do not fit the base model" in fewer
    more = refusal(lambda copy: edit(copy, target_modules=[*TARGETS, "lm_head"]))
    assert "of its tensors do not fit the base model" in more
    assert [path for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_base_model_with_a_fault_is_refused_and_one_with_odd_names_is_fixed(tmp_path: Path) -> None:
    """transformers draws missing tensors at random, and the merged model would have all of them."""
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "adapter", base, r=4)
    want = load_file(whole_checkpoint(adapter, None, NOWHERE) / "model.safetensors")
    change_tensors(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))(base)
    with pytest.raises(InvalidPairError, match=r"the base model .*lacks 1 of the .*up_proj"):
        whole_checkpoint(adapter, None, NOWHERE)
    make_checkpoint(base, seed=1)
    wrapped = {f"module.{name}": tensor for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(wrapped, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidPairError, match=r"the base model .*--fix-names"):
        whole_checkpoint(adapter, None, NOWHERE)
    merged = whole_checkpoint(adapter, None, NOWHERE, lambda base: fixed_checkpoint(base, NOWHERE))
    got = load_file(merged / "model.safetensors")
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_another_kind_of_adapter_is_refused_by_its_name(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InvalidPairError, match="is an adapter of type IA3: only LoRA can be merged"):
        whole_checkpoint(tmp_path / "adapter", None, NOWHERE)


def test_check_and_score_take_an_adapter(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "adapter", base, r=4)
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"prompt_token_ids": [7, 8], "response_token_ids": [9, 10]}) + "\n")
    pair = ("--sft", adapter, "--reference", base)
    score = ("score", items, "-o", tmp_path / "out.jsonl", "--engine", "transformers", *pair)
    done = subprocess.run(
        [sys.executable, "-m", "densepath", *score], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"merging the adapter {adapter} into its base model {base}" in done.stderr
    (result,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert len(result["rewards"]) == 2
