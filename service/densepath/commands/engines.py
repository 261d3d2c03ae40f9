"""The engine that the settings of a command ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from densepath.config import Engine, EngineOptions, Verify
from densepath.engine.scorer import Scorer
from densepath.errors import InvalidPairError, InvalidRequestError
from densepath.pair.pair import Pair

if TYPE_CHECKING:
    from densepath.verification.start import Start

#: What an engine process takes besides weights and KV cache: 690 MB for tiny models on a CPU.
PROCESS_BYTES = 1 << 30


def build_engine(
    pair: Pair, engine: Engine, options: EngineOptions, verify: Verify, say: Console
) -> tuple[Scorer, Start]:
    """The engine, and how it is started: verified, or with the reason why not.

    Raises InvalidRequestError where the options contradict the pair or each other.
    """
    from densepath.verification.start import Verifier, start_unverified

    length = context_length(pair, options)
    if engine is Engine.FAKE:
        from densepath.engine.fake import FakeScorer

        return FakeScorer(length), start_unverified("the numbers of the fake engine mean nothing")
    if engine is Engine.TRANSFORMERS:
        from densepath.engine.transformers import TransformersScorer

        scorer = TransformersScorer(pair.sft, pair.reference, context_length=length)
        return scorer, start_unverified("this engine is transformers, which others are held against")
    from densepath.engine.vllm.arguments import engine_arguments
    from densepath.engine.vllm.device import device_name
    from densepath.engine.vllm.engine import VllmScorer
    from densepath.engine.vllm.environment import cpu_build
    from densepath.engine.vllm.reasons import reasons

    arguments = engine_arguments(
        pair.sft,
        pair.reference,
        checkpoint_dtype=pair.dtype,
        reference_dtype=pair.reference_dtype,
        context_length=length,
        options=options,
    )
    if verify is Verify.OFF:
        return VllmScorer(arguments), start_unverified("--verify is off")
    return VllmScorer(arguments), Verifier(
        pair=pair,
        arguments=arguments,
        device=device_name(),
        cuda=not cpu_build(),
        verify=verify,
        say=lambda line: say.print(line, markup=False, soft_wrap=True),
        reasons=reasons,
    )


def require_room(pair: Pair, scorer: Scorer) -> None:
    """Raise InvalidPairError where the main memory has no room for this engine beside another one.

    The kernel would kill one of the two, or the service. On a GPU, vLLM looks at the free memory itself.
    """
    from densepath.engine.vllm.environment import cpu_build
    from densepath.verification.oracle import free_memory

    if not cpu_build():
        return
    weights = sum(
        file.stat().st_size
        for directory in (pair.sft, pair.reference)
        for file in directory.glob("*.safetensors")
    )
    cache = getattr(scorer, "arguments", {}).get("kv_cache_memory_bytes") or 0
    needed, free = weights + cache + PROCESS_BYTES, free_memory()
    if needed > free:
        raise InvalidPairError(
            f"a second engine takes about {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are "
            "free"
        )


def context_length(pair: Pair, options: EngineOptions) -> int:
    """In tokens. Raises InvalidRequestError where the options ask for more than both models take."""
    length = options.max_model_len or pair.context_length
    if length > pair.context_length:
        raise InvalidRequestError(
            f"--max-model-len {length} is more than the {pair.context_length} tokens that both models take"
        )
    return length
