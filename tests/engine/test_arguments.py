"""How vLLM is started on each device. There is no GPU here: what is asked of one is set in its place."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from densepath.config import EngineOptions
from densepath.engine.vllm import arguments
from densepath.engine.vllm.arguments import computed_dtypes, engine_arguments
from densepath.errors import InvalidRequestError

pytestmark = pytest.mark.engine

GIB = 1 << 30


@pytest.fixture
def sft(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return tmp_path


def of_gpu(monkeypatch: pytest.MonkeyPatch, *, gib: int, name: str) -> None:
    """As if vLLM's CUDA build were installed beside this GPU."""
    from vllm.engine import arg_utils

    monkeypatch.setattr(arguments, "cpu_build", lambda: False)
    platform = SimpleNamespace(
        get_device_total_memory=lambda: gib * GIB,
        get_device_name=lambda: name,
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    monkeypatch.setattr(arg_utils, "current_platform", platform)


def step(sft: Path, dtype: str = "bfloat16", context_length: int = 4096, **options: Any) -> tuple[int, int]:
    made = engine_arguments(
        sft, sft, checkpoint_dtype=dtype, context_length=context_length, options=EngineOptions(**options)
    )
    return made["max_num_batched_tokens"], made["max_num_seqs"]


@pytest.mark.parametrize(
    ("gib", "name", "want"),
    [
        (180, "NVIDIA B200", (16384, 1024)),
        (140, "NVIDIA H200", (16384, 1024)),
        (79, "NVIDIA H100 80GB HBM3", (16384, 1024)),
        (79, "NVIDIA A100-SXM4-80GB", (8192, 256)),
        (24, "NVIDIA GeForce RTX 4090", (8192, 256)),
    ],
)
def test_a_step_is_as_large_as_the_gpu_s_memory_allows(
    gib: int, name: str, want: tuple[int, int], sft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_gpu(monkeypatch, gib=gib, name=name)
    assert step(sft) == want
    assert step(sft, "float16") == want


def test_a_step_is_what_was_asked_for(sft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_gpu(monkeypatch, gib=140, name="NVIDIA H200")
    assert step(sft, max_num_batched_tokens=4096, max_num_seqs=64) == (4096, 64)
    assert step(sft, max_num_batched_tokens=512) == (512, 512), (
        "a sequence takes at least one token of a step"
    )
    assert step(sft, max_num_seqs=2) == (8192, 2), "two sequences of 4096 tokens fill no more"
    assert step(sft, context_length=8) == (8192, 1024)
    with pytest.raises(InvalidRequestError, match="--max-num-seqs 65 is more than the 64 tokens"):
        step(sft, max_num_batched_tokens=64, max_num_seqs=65)


def test_fp32_on_a_gpu_is_fp32(sft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLEX_ATTENTION multiplies in fp32; its tables grow with the step and with the cache."""

    def made(checkpoint: str, dtype: str = "auto") -> dict[str, Any]:
        options = EngineOptions(dtype=dtype)
        return engine_arguments(sft, sft, checkpoint_dtype=checkpoint, context_length=4096, options=options)

    of_gpu(monkeypatch, gib=140, name="NVIDIA H200")
    for arguments_ in (made("float32"), made("bfloat16", "float32"), made("bfloat16", "float")):
        assert arguments_["attention_backend"] == "FLEX_ATTENTION"
        assert (arguments_["max_num_batched_tokens"], arguments_["max_num_seqs"]) == (2048, 128)
    for arguments_ in (made("bfloat16"), made("float16"), made("float32", "bfloat16")):
        assert "attention_backend" not in arguments_, "vLLM's own choice is right in 16 bits"
    for first, second in (("float32", "bfloat16"), ("bfloat16", "float32")):
        mixed = engine_arguments(
            sft,
            sft,
            checkpoint_dtype=first,
            reference_dtype=second,
            context_length=4096,
            options=EngineOptions(),
        )
        assert computed_dtypes(mixed) == (first, second)
        assert "attention_backend" not in mixed, "it is chosen for each model while it is built"
        assert (mixed["max_num_batched_tokens"], mixed["max_num_seqs"]) == (2048, 128)
    for arguments_ in (made("float32"), made("bfloat16")):
        assert not {"enforce_eager", "block_size"} & set(arguments_), "those are for a CPU"


def test_the_options_of_serve_reach_the_engine(pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    from densepath.commands.engines import build_engine
    from densepath.commands.settings import ServeSettings
    from densepath.engine.vllm.engine import VllmScorer
    from densepath.pair.pair import load_pair

    pair = load_pair(*pair_dirs, cache_dir=tmp_path)
    settings = ServeSettings(max_num_batched_tokens=512, max_num_seqs=7)
    scorer, _ = build_engine(pair, settings.engine, settings, settings.verify, Console(quiet=True))
    assert isinstance(scorer, VllmScorer)
    made = scorer.arguments
    assert (made["max_num_batched_tokens"], made["max_num_seqs"]) == (512, 7)


def test_flex_attention_is_vllm_s_name_of_an_attention_that_takes_fp32_and_windows() -> None:
    from vllm.config import AttentionConfig
    from vllm.v1.attention.backends.flex_attention import FlexAttentionBackend

    assert AttentionConfig(backend="FLEX_ATTENTION").backend.name == FlexAttentionBackend.get_name()
    assert torch.float32 in FlexAttentionBackend.supported_dtypes
    assert FlexAttentionBackend.supports_sliding_window()
    assert FlexAttentionBackend.get_supported_head_sizes() == [], "any head size"


@pytest.mark.parametrize("context_length", [4, 1024])
def test_a_step_on_a_cpu_is_what_an_async_llm_takes(
    context_length: int, pair_dirs: tuple[Path, Path]
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from densepath.engine.vllm.plugin import register

    register()
    made = engine_arguments(
        *pair_dirs, checkpoint_dtype="float32", context_length=context_length, options=EngineOptions()
    )
    own = {key: value for key, value in made.items() if not key.startswith("max_num")}
    config = AsyncEngineArgs(**own).create_engine_config(UsageContext.ENGINE_CONTEXT).scheduler_config
    assert made["max_num_batched_tokens"] == config.max_num_batched_tokens
    assert made["max_num_seqs"] == config.max_num_seqs
    assert "attention_backend" not in made
