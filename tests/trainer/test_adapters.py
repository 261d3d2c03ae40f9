"""Where `eval`, `probe` and `train` name a model directory, an adapter is taken too."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM

from densepath.errors import InvalidRequestError
from densepath.pair.checkpoint import require_checkpoint
from densepath.trainer.evaluate.probe import directories
from densepath.trainer.evaluate.run import run_evaluation
from densepath.trainer.evaluate.settings import EvalSettings, ProbeSettings
from densepath.trainer.reinforce import run as reinforce
from densepath.trainer.reinforce.settings import TrainSettings
from densepath.trainer.rollouts.engines import RolloutEngine
from trainer.talkers import make_talker


def make_adapter(directory: Path, base: Path) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(directory)
    return directory


def test_an_adapter_is_evaluated_probed_and_trained(
    tmp_path: Path, prompts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = make_talker(tmp_path / "base", seed=1)
    adapter = make_adapter(tmp_path / "run/checkpoint-8", base)
    said, shown = Console(file=io.StringIO()), Console(file=io.StringIO(), width=200)
    given = EvalSettings(
        checkpoints=[base, adapter],
        held_out=prompts_file,
        seeds=1,
        max_new_tokens=4,
        engine=RolloutEngine.TRANSFORMERS,
    )
    run_evaluation(given, said, shown)
    assert "merging the adapter" in said.file.getvalue()  # type: ignore[attr-defined]
    assert "checkpoint-8 " in shown.file.getvalue()  # type: ignore[attr-defined]

    probe = ProbeSettings(prompts=prompts_file, sft=base, reference=[adapter])
    sft, references = directories(probe, said.print)
    assert sft == base
    merged = references["checkpoint-8"]
    assert (merged / "model.safetensors").is_file()

    def started(settings: TrainSettings, *_: object) -> None:
        raise InvalidRequestError(f"started from {settings.sft}")

    monkeypatch.setattr(reinforce, "RewardCalls", lambda *_, **__: nullcontext())
    monkeypatch.setattr(reinforce, "_sampler", started)
    with pytest.raises(InvalidRequestError, match=f"started from {merged}$"):
        reinforce.train(TrainSettings(sft=adapter, prompts=prompts_file, run=tmp_path / "dpr"), said)

    with pytest.raises(InvalidRequestError, match="this is an adapter, and a whole model is needed here"):
        require_checkpoint(adapter, "--base")
