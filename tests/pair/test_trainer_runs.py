"""The output folders of other trainers: which two checkpoints are picked, and what is said about them.

Folders of the Hugging Face Trainer and of TRL are made by these. Those of the others are laid out as their
sources do it.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed
from accelerate.commands.merge import merge_command, merge_command_parser
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from checkpoints import make_checkpoint, make_tokenizer
from densepath.commands.pairs import directories
from densepath.commands.settings import ServeSettings
from densepath.engine.transformers import load_model
from densepath.errors import InvalidPairError, InvalidRequestError
from densepath.pair.adapters import whole_checkpoint
from densepath.pair.pair import load_pair
from densepath.pair.trainer_runs import pick_pair

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    from trl import SFTConfig, SFTTrainer

ROWS = [{"prompt": f"What is {n} and {n}?", "completion": f" The answer is {2 * n}."} for n in range(16)]
ARGUMENTS: dict[str, Any] = {
    "max_steps": 8,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "save_steps": 2,
    "save_only_model": True,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "base", seed=1)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.getbasetemp()


def tuned_by_trl(base: Path, run: Path, *, save_steps: float = 2, **options: Any) -> Any:
    settings = SFTConfig(
        output_dir=str(run), gradient_checkpointing=False, **ARGUMENTS | {"save_steps": save_steps}
    )
    trainer = SFTTrainer(
        str(base),
        settings,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=make_tokenizer(),
        **options,
    )
    trainer.train()
    return trainer


def served(run: Path, **settings: Any) -> tuple[Path, Path, str]:
    """The two directories that `densepath serve --pair` loads, and what it says."""
    said = Console(file=io.StringIO(), width=1000)
    sft, reference = directories(ServeSettings(pair=str(run), **settings), said)
    return sft, reference, said.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_of_trl(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = tuned_by_trl(base, run)
    assert served(run)[:2] == (run / "checkpoint-8", run / "checkpoint-4")
    trainer.save_model()
    sft, reference, said = served(run)
    assert (sft, reference) == (run, run / "checkpoint-4")
    assert said == (
        f"{run}: the sft is the model in the folder itself (step 8), and the reference is checkpoint-4 "
        "(step 4, 50% of the sft's training samples). Found: checkpoint-2, checkpoint-4, checkpoint-6, "
        "checkpoint-8, the model in the folder itself.\n"
    )
    pair = load_pair(sft, reference, cache_dir=tmp_path)
    assert pair.sources == ("run", "checkpoint-4")
    assert served(run, reference_at=0.25)[1] == run / "checkpoint-2"


def test_a_run_of_trl_with_lora(
    base: Path, tmp_path: Path, say_difference: Callable[[str, float], None]
) -> None:
    run = tmp_path / "run"
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    trainer = tuned_by_trl(base, run, save_steps=0.5, peft_config=lora)
    trainer.save_model()
    sft, reference, said = served(run)
    assert sft.name.startswith("run-")
    assert reference.name.startswith("checkpoint-4-")
    assert "the reference is checkpoint-4 (step 4, 50% of" in said
    assert "Found: checkpoint-4, checkpoint-8, the model in the folder itself." in said
    load_pair(sft, reference, cache_dir=tmp_path)
    ids_1_L = torch.arange(3, 63)[None]
    with torch.inference_mode():
        want_L_V = trainer.model.eval()(ids_1_L).logits[0].log_softmax(-1)
        got_L_V = load_model(sft)(ids_1_L).logits[0].log_softmax(-1)
    difference = float((got_L_V - want_L_V).abs().max())
    say_difference("adapter of TRL's SFTTrainer, merged, against the trainer's own model", difference)
    assert difference < 2e-5


class Scripted(Trainer):
    """A Trainer whose evaluations are given: the best is after four of eight steps."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        return {"eval_score": {2: 0.2, 4: 0.9, 6: 0.5, 8: 0.4}[self.state.global_step]}


@pytest.mark.parametrize("loaded", [True, False], ids=["load_best_model_at_end", "only recorded"])
def test_the_best_model_of_a_trainer(loaded: bool, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 300, (16, 12)).tolist()]
    arguments = TrainingArguments(
        output_dir=str(run),
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        load_best_model_at_end=loaded,
        **ARGUMENTS,
    )
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = Scripted(model, arguments, train_dataset=rows, eval_dataset=rows)  # type: ignore[arg-type]
    trainer.train()
    advice = "The best model by the trainer's own metric is checkpoint-4: name it by --sft to use it."
    picked = pick_pair(run, 0.5)
    assert (picked.sft, picked.reference) == (run / "checkpoint-8", run / "checkpoint-4")
    assert advice in picked.account
    trainer.save_model()
    picked = pick_pair(run, 0.5)
    if loaded:
        assert (picked.sft, picked.reference) == (run, run / "checkpoint-2")
        assert "the model in the folder itself (step 4), and the reference is checkpoint-2" in picked.account
        assert "Its weights are those of checkpoint-4, the best model by the trainer's" in picked.account
    else:
        assert (picked.sft, picked.reference) == (run, run / "checkpoint-4")
        assert "the model in the folder itself (step 8)" in picked.account
        assert advice in picked.account
    (run / "model.safetensors").write_bytes(b"converted")
    with pytest.raises(InvalidRequestError, match="a best model, checkpoint-4, and a model in the folder"):
        pick_pair(run, 0.5)


def lay(folder: Path, **files: Any) -> Path:
    """A folder with files: bytes or JSON. `__` stands for `/`, and a name has its dots as they are."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def model(content: str) -> dict[str, Any]:
    return {"config.json": {}, "model.safetensors": content.encode()}


def adapter(content: str, **config: Any) -> dict[str, Any]:
    return {
        "adapter_config.json": {"peft_type": "LORA", **config},
        "adapter_model.safetensors": content.encode(),
    }


def state(step: int, end: int = 1000, **more: Any) -> dict[str, Any]:
    return {"trainer_state.json": {"global_step": step, "max_steps": end, **more}}


def picked(run: Path, share: float = 0.5) -> tuple[str, str, str]:
    pair = pick_pair(run, share)
    return pair.sft.relative_to(run).as_posix(), pair.reference.relative_to(run).as_posix(), pair.account


def test_an_adapter_of_axolotl(tmp_path: Path) -> None:
    """It writes config.json, adapter_config.json and the tokenizer into the folder before it trains."""
    early = {"config.json": {}, "adapter_config.json": {"peft_type": "LORA"}, "tokenizer.json": {}}
    run = lay(tmp_path / "out", **early)
    with pytest.raises(InvalidRequestError, match="is neither a run of `densepath sft`"):
        pick_pair(run, 0.5)
    for step in (250, 500, 750, 1000):
        lay(run / f"checkpoint-{step}", **adapter(f"{step}"), **state(step))
    assert picked(run)[:2] == ("checkpoint-1000", "checkpoint-500")
    lay(run, **adapter("1000"))
    assert picked(run)[:2] == (".", "checkpoint-500")


def test_a_full_model_of_llama_factory(tmp_path: Path) -> None:
    """It writes the state of the end of training into the folder, where the last save was before the end."""
    run = lay(tmp_path / "saves", **model("end"), **state(1043, 1043), all_results__json={})
    for step in (500, 1000):
        lay(run / f"checkpoint-{step}", **model(f"{step}"), **state(step, 1043))
    sft, reference, account = picked(run)
    assert (sft, reference) == (".", "checkpoint-500")
    assert "(step 1043), and the reference is checkpoint-500 (step 500, 48% of" in account
    (run / "trainer_state.json").unlink()
    assert "does not give the step of its own model: 1043, the end of training, is assumed" in picked(run)[2]
    lay(run, **model("1000"))  # stopped early, after the last save
    assert "(step 1000), and the reference is checkpoint-500 (step 500, 50% of" in picked(run)[2]


@pytest.mark.parametrize("actor", ["", "actor__"], ids=["sft", "rl"])
def test_checkpoints_of_verl(actor: str, tmp_path: Path) -> None:
    """Its huggingface/ has config and tokenizer from the start, and weights once they are merged."""
    run = lay(tmp_path / "checkpoints", **{"latest_checkpointed_iteration.txt": b"30"})
    for step in (10, 20, 30):
        inner = {
            "huggingface__config.json": {},
            "huggingface__tokenizer.json": {},
            "model_world_size_2_rank_0.pt": b"",
            "model_world_size_2_rank_1.pt": b"",
            "fsdp_config.json": {},
        }
        lay(run / f"global_step_{step}", **{f"{actor}{name}": content for name, content in inner.items()})
    place = actor.replace("__", "/")
    with pytest.raises(InvalidRequestError) as refused:
        pick_pair(run, 0.5)
    final = run / "global_step_30" / place
    assert str(refused.value) == (
        "weights in shards must be merged first: for global_step_30, run `python -m verl.model_merger merge "
        f"--backend fsdp --local_dir {final} --target_dir {final / 'huggingface'}`; for global_step_10, run "
        f"`python -m verl.model_merger merge --backend fsdp --local_dir {run / 'global_step_10' / place} "
        f"--target_dir {run / 'global_step_10' / place / 'huggingface'}`"
    )
    for step in (10, 30):
        lay(run / f"global_step_{step}" / place / "huggingface", **model(f"{step}"))
    assert picked(run)[:2] == (f"global_step_30/{place}huggingface", f"global_step_10/{place}huggingface")
    lay(run / f"global_step_30/{place}huggingface/lora_adapter", **adapter("30", lora_alpha=0))
    sft = picked(run)[0]
    assert sft == f"global_step_30/{place}huggingface/lora_adapter"
    with pytest.raises(InvalidPairError, match="has lora_alpha 0, with which an adapter changes nothing"):
        whole_checkpoint(run / sft, None, lambda line: None)


def test_megatron_checkpoints_of_verl(tmp_path: Path) -> None:
    for step in (10, 20):
        lay(tmp_path / f"global_step_{step}/actor", **{"model__dist_ckpt__metadata.json": {}})
    with pytest.raises(
        InvalidRequestError, match=r"merge --backend megatron --local_dir \S+_20/actor --target"
    ):
        pick_pair(tmp_path, 0.5)
    for step in (10, 20):
        lay(tmp_path / f"global_step_{step}/actor/model/huggingface", **model(f"{step}"))
    assert picked(tmp_path)[0] == "global_step_20/actor/model/huggingface"


def test_shards_of_deepspeed_name_the_command_that_merges_them(tmp_path: Path) -> None:
    for step in (500, 1000):
        lay(
            tmp_path / "my run" / f"checkpoint-{step}",
            **{f"global_step{step}__zero_pp_rank_0_mp_rank_00_model_states.pt": b""},
            **{"config.json": {}, "latest": b"", "zero_to_fp32.py": b""},
            **state(step),
        )
    with pytest.raises(InvalidRequestError) as refused:
        pick_pair(tmp_path / "my run", 0.5)
    final = f"'{tmp_path}/my run/checkpoint-1000'"
    script = f"'{tmp_path}/my run/checkpoint-1000/zero_to_fp32.py'"
    command = f"python {script} {final} {final} --safe_serialization"
    assert f"for checkpoint-1000, run `{command}`; for checkpoint-500, run" in str(refused.value)


def test_shards_of_fsdp_are_merged_by_the_command_that_is_named(base: Path, tmp_path: Path) -> None:
    """As accelerate writes them; the command runs as it stands."""
    run = tmp_path / "run"
    tensors = load_file(base / "model.safetensors")
    for step in (4, 8):
        lay(run / f"checkpoint-{step}", **state(step, 8))
        distributed.save(
            {"model": {name: tensor + step for name, tensor in tensors.items()}},
            storage_writer=distributed.FileSystemWriter(run / f"checkpoint-{step}/pytorch_model_fsdp_0"),
            no_dist=True,
        )
    with pytest.raises(InvalidRequestError, match="must be merged first: for checkpoint-8") as refused:
        pick_pair(run, 0.5)
    assert "copy config.json and the tokenizer of the base model into" in str(refused.value)
    for command in str(refused.value).split("`")[1::2]:
        program, verb, *words = shlex.split(command)
        assert (program, verb) == ("accelerate", "merge-weights")
        merge_command(merge_command_parser().parse_args(words))
        for path in base.iterdir():
            if path.suffix != ".safetensors":
                shutil.copy(path, words[1])
    assert picked(run)[:2] == ("checkpoint-8", "checkpoint-4")
    merged = load_file(run / "checkpoint-4/model.safetensors")
    assert all(torch.equal(merged[name], tensor + 4) for name, tensor in tensors.items())
    load_pair(run / "checkpoint-8", run / "checkpoint-4", cache_dir=tmp_path)


def test_a_reference_that_is_far_from_half_is_said(tmp_path: Path) -> None:
    for step in (800, 900, 1000):
        lay(tmp_path / f"checkpoint-{step}", **model(f"{step}"), **state(step))
    sft, reference, account = picked(tmp_path)
    assert (sft, reference) == ("checkpoint-1000", "checkpoint-800")
    assert "No checkpoint is nearer to 50%: train with save_steps=0.5, which saves one there, and" in account
    assert "nearer" not in picked(tmp_path, 0.85)[2]


def test_the_step_is_the_state_s_or_the_name_s(tmp_path: Path) -> None:
    for name, step in (("checkpoint-1", 400), ("checkpoint-2", 1000), ("checkpoint-3", 500)):
        lay(tmp_path / name, **model(name), **state(step))
    assert picked(tmp_path)[:2] == ("checkpoint-2", "checkpoint-3")
    for path in tmp_path.glob("*/trainer_state.json"):
        path.write_text("{")
    assert picked(tmp_path)[:2] == ("checkpoint-3", "checkpoint-1")


def test_one_checkpoint_is_no_pair(tmp_path: Path) -> None:
    run = lay(tmp_path / "run", **model("1000"))
    lay(run / "checkpoint-500", **{"trainer_state.json": {}, "optimizer.pt": b""})  # it holds no weights
    with pytest.raises(InvalidRequestError) as refused:
        pick_pair(run, 0.5)
    assert str(refused.value) == (
        f"{run} has one checkpoint only, the model in the folder itself, and a pair needs one from about "
        "half of the training too: train with save_steps=0.5, which saves one there, and with no "
        f"save_total_limit below 2, or give the base model as the reference: --sft {run} --reference BASE"
    )
    lay(run / "checkpoint-1000", **model("1000"), **state(1000))
    with pytest.raises(InvalidRequestError, match="has one checkpoint only"):
        pick_pair(run, 0.5)
    with pytest.raises(InvalidRequestError, match=f"or give the folder above it, {run}$"):
        pick_pair(run / "checkpoint-1000", 0.5)
    lay(run / "checkpoint-400", **model("400"), **state(400))
    with pytest.raises(InvalidRequestError, match="does not hold the base model, which --reference-at 0"):
        pick_pair(run, 0)


def test_what_is_no_folder_of_a_trainer_is_said(tmp_path: Path) -> None:
    lay(tmp_path / "data", **{"train.jsonl": b""})
    with pytest.raises(InvalidRequestError) as refused:
        served(tmp_path / "data")
    assert str(refused.value) == (
        f"{tmp_path / 'data'} is neither a run of `densepath sft`, which has a manifest.json, nor the output "
        "folder of another trainer, which has a model, an adapter, or folders checkpoint-N or global_step_N "
        "with weights"
    )
    lay(tmp_path / "data/base", **model("base"))
    with pytest.raises(InvalidRequestError, match=r"a run of `densepath sft`, it did not finish$"):
        served(tmp_path / "data")
    with pytest.raises(InvalidRequestError, match="is not a directory that can be read: give a run of"):
        served(tmp_path / "nothing")
