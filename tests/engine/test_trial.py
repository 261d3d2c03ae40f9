"""What vLLM cannot run is known before anything is loaded, and why."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
from checkpoints import make_checkpoint
from damage import edit
from densepath.config import EngineOptions
from densepath.engine.vllm.trial import job_of, try_pair
from quantised import FORMATS, quantise

from .other_checkpoints import HYBRID, make_other
from .test_longrope import make_phi3

pytestmark = pytest.mark.engine

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SOME_LAYERS = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
NARROW = {"num_attention_heads": 4}  # heads of 16 dimensions
STATE = "has layers that keep a state"

#: Model type, fields of its config, dtype, and what the reason says.
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "mamba": ("mamba2", {"num_heads": 4, "head_dim": 32, "n_groups": 1}, "float32", STATE),
    "jamba": (
        "jamba",
        {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1},
        "float32",
        "has Mamba 1 layers, and vLLM has no kernel of them for a CPU",
    ),
    "narrow heads": ("llama", NARROW, "float32", "16 dimensions: on this device, serve a checkpoint whose"),
    "half precision": ("gemma2", {"head_dim": 32}, "float16", "Please use bfloat16 or float32 instead"),
    "not in vLLM": (
        "codegen",
        {"n_embd": 64, "n_layer": 2, "n_head": 2, "rotary_dim": 16},
        "float32",
        "not supp",
    ),
}


def job(sft: Path, reference: Path, dtype: str = "float32") -> str:
    return job_of(sft, reference, dtype, None, 512, EngineOptions())


#: vLLM is imported once: each pair is tried in a fork.
SCRIPT = """
import io, json, os, sys
import densepath.engine.vllm.environment
import densepath.engine.vllm.model
from densepath.engine.vllm import trial

for line in sys.stdin.read().splitlines():
    pid = os.fork()
    if pid == 0:
        sys.stdin = io.StringIO(line)
        trial._main()
        os._exit(0)
    os.waitpid(pid, 0)
"""


def try_all(jobs: list[str]) -> list[dict[str, str | None]]:
    done = forked.run(
        [sys.executable, "-c", SCRIPT], input="\n".join(jobs), capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"reason"')]
    assert len(answers) == len(jobs), done.stderr[-3000:]
    return answers


def test_what_cannot_start_is_refused_with_its_reason(tmp_path: Path, pair_dirs: tuple[Path, Path]) -> None:
    pairs, says = [], []
    for name, (model_type, fields, dtype, reason) in REFUSED.items():
        sft, reference = (
            make_other(tmp_path / name / side, model_type, seed=seed, **fields)
            for seed, side in enumerate(("sft", "reference"))
        )
        pairs.append(job(sft, reference, dtype))
        says.append(reason)
    narrow = Path(tmp_path / "narrow heads" / "reference")
    pairs.append(job(pair_dirs[0], narrow))
    says.append("the reference's attention heads have 16 dimensions")
    answers = try_all(pairs)
    for answer, reason in zip(answers, says, strict=True):
        assert answer["unknown"] is None
        assert reason in (answer["reason"] or "it can run"), answer
        assert "\n" not in answer["reason"]  # type: ignore[operator]


def test_quantised_checkpoints(tmp_path: Path, pair_dirs: tuple[Path, Path]) -> None:
    """What this device does not run is refused in one sentence. `test_quantised.py` starts the others."""
    plain = make_checkpoint(tmp_path / "plain", seed=1, dtype=torch.bfloat16)
    unused = ("AWQ 4 bits", "compressed-tensors W4A16")
    names = [name for name in FORMATS if name not in unused]
    quantised = {name: quantise(plain, tmp_path / name, name)[0] for name in names}
    other = make_checkpoint(tmp_path / "other", seed=1, dtype=torch.bfloat16)
    edit("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})(other)
    cache = quantise(plain, tmp_path / "cache", "compressed-tensors W8A8 fp8")[0]
    scheme = FORMATS["compressed-tensors W8A8 fp8"].config | {"kv_cache_scheme": {"num_bits": 8}}
    edit("config.json", quantization_config=scheme)(cache)
    no_kernel = "Failed to find a kernel that can implement the "
    reasons = {
        "compressed-tensors W8A16": (quantised, "compressed-tensors", no_kernel),
        "GPTQ 8 bits": (quantised, "gptq", "Marlin does not support weight_bits = uint8b128"),
        "fp8 in blocks": (quantised, "fp8", no_kernel),
        "other": ({"other": other}, "bitsandbytes", "Unknown quantization method: bitsandbytes"),
        "cache": ({"cache": cache}, "compressed-tensors", "it also quantises the KV cache (kv_cache_scheme)"),
    }
    jobs = [job(directories[name], pair_dirs[1], "bfloat16") for name, (directories, *_) in reasons.items()]
    eight, four = quantised["compressed-tensors W8A8 int8"], quantised["GPTQ 4 bits"]
    jobs += [job(plain, eight, "bfloat16"), job(plain, other, "bfloat16"), job(four, plain)]
    *answers, runs, last, wide = try_all(jobs)
    for answer, (name, (_, method, reason)) in zip(answers, reasons.items(), strict=True):
        if name == "fp8 in blocks" and torch.cpu._is_amx_tile_supported():
            continue
        words = answer["reason"] or ""
        assert words.startswith(f"vLLM cannot run the sft, whose weights are quantised ({method}), on this ")
        assert reason in words
        assert words.endswith("; serve the full-precision checkpoint")
    assert runs == {"reason": None, "unknown": None}
    assert "cannot run the reference, whose weights are quantised (bitsandbytes)" in (last["reason"] or "")
    assert "float32 is not supported for quantization method auto_gptq" in (wide["reason"] or "")


def test_what_can_start_is_not_refused(tmp_path: Path, pair_dirs: tuple[Path, Path]) -> None:
    longrope = make_phi3(tmp_path / "phi3", 1)
    gemma3 = make_checkpoint(tmp_path / "gemma3", "gemma3", seed=1)
    mistral = make_checkpoint(tmp_path / "mistral", "mistral", seed=1)
    moe = make_other(tmp_path / "moe", "qwen3_moe", head_dim=32, **MOE)
    sinks = make_other(tmp_path / "sinks", "gpt_oss", head_dim=32, num_local_experts=4, num_experts_per_tok=2)
    hybrid = make_other(tmp_path / "hybrid", "granitemoehybrid", **HYBRID)
    windows = make_other(tmp_path / "windows", "qwen2", **SOME_LAYERS)
    firsts = (*pair_dirs, longrope, gemma3, mistral, moe, sinks, windows)
    for answer in try_all([*(job(first, pair_dirs[1]) for first in firsts), job(hybrid, hybrid)]):
        assert answer == {"reason": None, "unknown": None}


def test_in_a_process_of_its_own(tmp_path: Path, pair_dirs: tuple[Path, Path]) -> None:
    assert (
        try_pair(*pair_dirs, checkpoint_dtype="float32", context_length=512, options=EngineOptions()) is None
    )


def test_where_vllm_is_not_installed(pair_dirs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.engine.vllm.trial.find_spec", lambda name: None)
    with pytest.raises(LookupError, match="vLLM is not installed"):
        try_pair(*pair_dirs, checkpoint_dtype="float32", context_length=512, options=EngineOptions())
