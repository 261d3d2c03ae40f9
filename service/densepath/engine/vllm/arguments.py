"""How vLLM is started for a pair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.engine.vllm import ARCHITECTURE
from densepath.engine.vllm.environment import cpu_build

#: Without a word from the operator, vLLM's CPU build would take 92 % of the machine for its cache.
CPU_KV_CACHE_BYTES = 1 << 30
#: More of a prompt is shared than with the CPU build's 128, and blocks stay long enough to run well.
CPU_BLOCK_SIZE = 32


@dataclass(frozen=True)
class EngineOptions:
    """What an operator may set of vLLM; None leaves the choice to the engine."""

    dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    tensor_parallel_size: int = 1
    distributed_executor_backend: str | None = None


def engine_arguments(
    sft: Path, reference: Path, *, checkpoint_dtype: str, context_length: int, options: EngineOptions
) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs` and `LLM`.

    `dtype` "auto" is the checkpoint's own: vLLM's "auto" would serve an fp32 checkpoint in 16 bits.
    """
    architectures = json.loads((sft / "config.json").read_text())["architectures"]
    arguments: dict[str, Any] = {
        "model": str(sft),
        "runner": "pooling",
        "skip_tokenizer_init": True,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "scheduler_cls": "densepath.engine.vllm.scheduler.PairScheduler",
        "hf_overrides": {
            "architectures": [ARCHITECTURE],
            "densepath_sft_architectures": architectures,
            "densepath_reference": str(reference),
        },
        "dtype": checkpoint_dtype if options.dtype == "auto" else options.dtype,
        "max_model_len": context_length,
        "tensor_parallel_size": options.tensor_parallel_size,
        "distributed_executor_backend": options.distributed_executor_backend,
        "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
    }
    if options.gpu_memory_utilization is not None:
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
    if cpu_build():
        arguments |= {"enforce_eager": True, "block_size": CPU_BLOCK_SIZE}
        if options.gpu_memory_utilization is None:
            arguments["kv_cache_memory_bytes"] = options.kv_cache_memory_bytes or CPU_KV_CACHE_BYTES
    return arguments
