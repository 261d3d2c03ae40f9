"""Building the chosen generator of rollouts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

from densepath.trainer.types import RolloutGenerator

#: Default: a quarter of the GPU is for sampling, and the rest is for the learner.
GPU_SHARE = 0.25
CPU_KV_CACHE_BYTES = 256 << 20


class RolloutEngine(StrEnum):
    """The engine that samples from the policy."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"


def build_generator(
    kind: RolloutEngine,
    directory: Path,
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    max_model_len: int,
    dtype: str = "float32",
    gpu_memory_utilization: float | None = None,
    processes: int = 1,
) -> RolloutGenerator:
    """A generator from the checkpoint in `directory`, with at most `max_new_tokens` per response.

    `processes` is the number of processes that train together, each with its own generator. `max_model_len`
    counts the tokens of a prompt and its response.
    """
    if kind is RolloutEngine.TRANSFORMERS:
        from densepath.trainer.rollouts.transformers import TransformersGenerator

        return TransformersGenerator(directory, max_new_tokens=max_new_tokens, eos_ids=eos_ids)
    import torch

    from densepath.trainer.rollouts.vllm import VllmGenerator

    memory: dict[str, Any] = {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES, "block_size": 32}
    if torch.cuda.is_available():
        memory = {"gpu_memory_utilization": gpu_memory_utilization or GPU_SHARE}
    return VllmGenerator(
        directory,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        dtype=dtype,
        max_model_len=max_model_len,
        memory=memory,
        processes=processes,
    )
