"""How vLLM is started for a pair."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from densepath.config import EngineOptions
from densepath.engine.vllm import ARCHITECTURE, HYBRID_ARCHITECTURE
from densepath.engine.vllm.environment import cpu_build
from densepath.errors import InvalidRequestError

#: Without this, vLLM's CPU build would take 92 % of the machine's memory for its cache.
CPU_KV_CACHE_BYTES = 1 << 30
#: More of a prompt is shared than with the CPU build's 128, and blocks are still long enough to run fast.
CPU_BLOCK_SIZE = 32

#: Names in config.json for how the weights are quantised.
QUANTISATION = {"quantization_config", "compression_config"}
#: vLLM's other names of torch's dtypes.
_DTYPES = {"float": "float32", "half": "float16"}
FP32 = "float32"


def engine_arguments(
    sft: Path,
    reference: Path,
    *,
    checkpoint_dtype: str,
    reference_dtype: str | None = None,
    context_length: int,
    options: EngineOptions,
) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs` and `LLM`.

    `checkpoint_dtype` is the dtype of the SFT's checkpoint, and also of the reference's if `reference_dtype`
    is None. The option `dtype` "auto" means each checkpoint's own dtype: vLLM's "auto" would serve an fp32
    checkpoint in 16 bits. vLLM's `dtype` is that of the SFT.

    `max_num_batched_tokens` and `max_num_seqs` are always set. Raises InvalidRequestError if they contradict
    each other.
    """
    dtypes = checkpoint_dtype, reference_dtype or checkpoint_dtype
    if options.dtype != "auto":
        dtypes = (_DTYPES.get(options.dtype, options.dtype),) * 2
    config = json.loads((sft / "config.json").read_text())
    architectures = config["architectures"]
    hybrid = any(is_hybrid(name) for name in architectures)
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
            "architectures": [HYBRID_ARCHITECTURE if hybrid else ARCHITECTURE],
            "densepath_sft_architectures": architectures,
            "densepath_reference": str(reference),
            "densepath_reference_dtype": dtypes[1],
        },
        "dtype": dtypes[0],
        "max_model_len": context_length,
        "tensor_parallel_size": options.tensor_parallel_size,
        "distributed_executor_backend": options.distributed_executor_backend,
        "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
    }
    for name in QUANTISATION & config.keys():
        # vLLM's own config describes both models. Each model gets its quantisation while it is built.
        arguments["hf_overrides"] |= {name: None, "densepath_sft_quantisation": config[name]}
    if options.gpu_memory_utilization is not None:
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
    arguments |= _step(dtypes, context_length, options)
    if not cpu_build() and set(dtypes) == {FP32}:
        # vLLM's own choice, TRITON_ATTN, multiplied in TF32: rewards were off by 3.2e-3 instead of 6.0e-6.
        arguments["attention_backend"] = "FLEX_ATTENTION"
    if cpu_build():
        arguments |= {"enforce_eager": True, "block_size": CPU_BLOCK_SIZE}
        if options.gpu_memory_utilization is None:
            arguments["kv_cache_memory_bytes"] = options.kv_cache_memory_bytes or CPU_KV_CACHE_BYTES
    return arguments


def computed_dtypes(arguments: dict[str, Any]) -> tuple[str, str]:
    """Torch's names of the dtypes in which the SFT and the reference are computed."""
    return arguments["dtype"], arguments["hf_overrides"]["densepath_reference_dtype"]


def is_hybrid(architecture: str) -> bool:
    """Whether vLLM's class of this name has layers that keep a state.

    The source of the class says so. vLLM's own answer takes a process of 10 to 25 seconds at the first start
    of an architecture, because importing the class here could initialise CUDA.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    known = ModelRegistry.models.get(architecture)
    if known is None:
        return False
    loaded = getattr(known, "model_cls", None)
    module = find_spec(loaded.__module__ if loaded else known.module_name)
    if module is None or module.origin is None:
        return False
    return "IsHybrid" in Path(module.origin).read_text(encoding="utf-8")


def _step(dtypes: tuple[str, str], context_length: int, options: EngineOptions) -> dict[str, int]:
    """How many tokens and sequences one step of the engine takes.

    What the options leave open is vLLM's default. On a GPU that is the default of `LLM`, which depends on the
    device's memory, because the default of AsyncLLM leaves a large GPU half idle. fp32 on a GPU keeps the
    default of AsyncLLM: the tables of FLEX_ATTENTION have one row per sequence and one per 16 tokens of a
    step, and each row is as wide as the whole cache. The memory size comes from the driver without
    initialising CUDA, so that the engine process may be forked.
    """
    from vllm.config import SchedulerConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    tokens = SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS
    sequences = options.max_num_seqs or SchedulerConfig.DEFAULT_MAX_NUM_SEQS
    if not cpu_build() and FP32 not in dtypes:
        tokens_by_use, sequences_by_use = EngineArgs.get_batch_defaults(options.tensor_parallel_size)
        tokens = tokens_by_use[UsageContext.LLM_CLASS]
        sequences = options.max_num_seqs or sequences_by_use[UsageContext.LLM_CLASS]
    tokens = options.max_num_batched_tokens or min(tokens, sequences * context_length)
    if options.max_num_seqs is None:
        sequences = min(sequences, tokens)
    if sequences > tokens:
        raise InvalidRequestError(
            f"--max-num-seqs {sequences} is more than the {tokens} tokens of a step "
            "(--max-num-batched-tokens): each sequence needs at least one token"
        )
    return {"max_num_batched_tokens": tokens, "max_num_seqs": sequences}
