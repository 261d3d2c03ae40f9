"""The engine that the settings of a command ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from densepath.config import Engine, EngineOptions, Verify
from densepath.engine.scorer import Scorer
from densepath.errors import InvalidRequestError
from densepath.pair.pair import Pair

if TYPE_CHECKING:
    from densepath.verification.start import Start


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


def context_length(pair: Pair, options: EngineOptions) -> int:
    """In tokens. Raises InvalidRequestError where the options ask for more than both models take."""
    length = options.max_model_len or pair.context_length
    if length > pair.context_length:
        raise InvalidRequestError(
            f"--max-model-len {length} is more than the {pair.context_length} tokens that both models take"
        )
    return length
