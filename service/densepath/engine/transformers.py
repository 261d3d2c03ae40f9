"""The oracle: plain transformers, one sequence at a time. It is slow, and its numbers are trusted."""

from __future__ import annotations

import asyncio
import inspect
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densepath.engine.dequantise import dequantised, is_dequantised_here
from densepath.engine.ranking import rank_tokens, read_table
from densepath.engine.scorer import Scored, View
from densepath.errors import EngineUnavailableError, InvalidPairError
from densepath.sequences import Sequence

if TYPE_CHECKING:
    import torch


def load_model(directory: Path, *, dtype: str = "float32", **placement: Any) -> Any:
    """One checkpoint in transformers, with eager attention. `placement` is passed to `from_pretrained`.

    Attention is eager because transformers' default omits the soft cap of Gemma 2's attention. Quantised
    weights are dequantised. Raises InvalidPairError if a tensor is missing or has another shape: transformers
    would fill it with random values.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    model_class: Any = AutoModelForCausalLM
    source: Path | None = directory
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    if is_dequantised_here(directory):
        placement |= {"state_dict": dequantised(directory, config.quantization_config, getattr(torch, dtype))}
        del config.quantization_config
        # The tensors are given, and an Auto class would look for files.
        model_class, source = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], None
    model, loading = model_class.from_pretrained(
        source,
        config=config,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **placement,
    )
    lost = sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])])
    if lost:
        raise InvalidPairError(
            f"{len(lost)} of the tensors that transformers needs are missing or have another shape, such as "
            f"{lost[0]}"
        )
    return model.eval()


def logprobs_over_vocabulary(model: Any, sequence: Sequence) -> torch.Tensor:
    """Log-probabilities over the vocabulary at each scored position, float32 [T, V] on its device."""
    import torch

    # An offloaded model (layer by layer) reports the device "meta", and moves its inputs itself.
    device = "cpu" if model.device.type == "meta" else model.device
    row_T = torch.from_numpy(sequence.positions_T - 1).to(device)
    token_ids_1_L = torch.from_numpy(sequence.token_ids_L)[None].to(device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logit_T_V = model(token_ids_1_L, logits_to_keep=row_T).logits[0]
    else:
        logit_T_V = model(token_ids_1_L).logits[0, row_T]
    logp_T_V: torch.Tensor = logit_T_V.float().log_softmax(-1)
    return logp_T_V


class TransformersScorer:
    """Both models in fp32."""

    dtype = "float32"
    reference_dtype = "float32"

    def __init__(self, sft: Path, reference: Path, *, context_length: int) -> None:
        self._directories = (sft, reference)
        self.context_length = context_length
        self._models: tuple[Any, ...] = ()
        self._one_at_a_time = asyncio.Lock()

    @property
    def steps(self) -> int:
        """Another number at each look: a computation in this process cannot hang apart from the service."""
        return time.monotonic_ns()

    def load(self) -> None:
        """Load both models without memory-mapping, so that rewriting a file later changes no number."""
        self._models = tuple(load_model(directory, disable_mmap=True) for directory in self._directories)

    def score_now(self, sequence: Sequence, view: View | None = None) -> Scored:
        """Score one sequence in this thread."""
        import torch

        with torch.inference_mode():
            target_T = torch.from_numpy(sequence.scored_ids_T)
            logp_sft_T_V, logp_reference_T_V = (
                logprobs_over_vocabulary(model, sequence) for model in self._models
            )
            logp_sft_T, logp_reference_T = (
                logp_T_V.gather(1, target_T[:, None])[:, 0].numpy()
                for logp_T_V in (logp_sft_T_V, logp_reference_T_V)
            )
            ranked = None
            if view is not None:
                table_T = rank_tokens(logp_sft_T_V, logp_reference_T_V, target_T, view)
                ranked = read_table(table_T.numpy(), view)
        return Scored(logp_sft_T, logp_reference_T, cached_tokens=0, ranked=ranked)

    async def start(self) -> None:
        """Load both models off the event loop."""
        await asyncio.to_thread(self.load)

    async def score(self, sequence: Sequence, view: View | None = None, *, cold: bool = False) -> Scored:
        """Score one sequence off the event loop. A call that is cancelled before its turn is never computed.

        There is no cache, so `cold` makes no difference.
        """
        if not self._models:
            raise EngineUnavailableError("the engine is not running", retry_after=5)
        async with self._one_at_a_time:
            return await asyncio.to_thread(self.score_now, sequence, view)

    def alive(self) -> bool:
        """Whether both models are loaded."""
        return bool(self._models)

    async def died(self) -> None:
        """Never returns: the models are in this process."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Free both models."""
        self._models = ()
