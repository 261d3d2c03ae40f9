"""Rollouts by vLLM in this process, with its CPU or its CUDA build. Weights are replaced in place."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densepath.trainer.types import Rollout

# Set before vllm is imported: the engine must run in this process. There, the schedule of a step depends on
# the step only, so a resumed run samples the same ids, and weights can be passed as tensors.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
if not torch.cuda.is_available():
    os.environ.setdefault(
        "VLLM_CPU_OMP_THREADS_BIND", "nobind"
    )  # the threads of the learner are in this process too
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling takes a minute, and gains little on a CPU
    # Warnings of vLLM's CPU build at every start: deprecated names of torch, and a missing Triton.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.triton_utils\.dispatcher")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)

from vllm import LLM, SamplingParams


class VllmGenerator:
    """A copy of the policy in a vLLM engine of its own.

    If several processes train, each has its own engine, and `external_launcher` makes vLLM use the
    existing process group.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_new_tokens: int,
        eos_ids: frozenset[int],
        dtype: str,
        max_model_len: int,
        memory: dict[str, Any],
        processes: int = 1,
    ) -> None:
        self._llm = LLM(
            model=str(directory),
            skip_tokenizer_init=True,
            trust_remote_code=False,
            load_format="safetensors",
            dtype=dtype,
            max_model_len=max_model_len,
            enforce_eager=not torch.cuda.is_available(),
            enable_prefix_caching=True,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            seed=0,
            distributed_executor_backend="external_launcher" if processes > 1 else None,
            **memory,
        )
        self._max_new_tokens, self._eos_ids = max_new_tokens, sorted(eos_ids)
        self._made = 0

    def generate(
        self, prompt_ids_N: Sequence[Sequence[int]], seeds_N: Sequence[int] | None
    ) -> Iterator[Rollout]:
        """As `RolloutGenerator.generate`. Each response is yielded as soon as it is finished."""
        engine = self._llm.llm_engine
        place: dict[str, int] = {}
        for n, prompt_ids in enumerate(prompt_ids_N):
            self._made += 1
            place[str(self._made)] = n
            params = self._params(None if seeds_N is None else seeds_N[n])
            engine.add_request(str(self._made), {"prompt_token_ids": list(prompt_ids)}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield _rollout(place[output.request_id], output.outputs[0])

    def _params(self, seed: int | None) -> Any:
        return SamplingParams(
            temperature=0.0 if seed is None else 1.0,
            seed=seed,
            max_tokens=self._max_new_tokens,
            ignore_eos=True,  # only the EOS ids of the pair end a response
            stop_token_ids=self._eos_ids,
            logprobs=0,
            detokenize=False,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights, and drop everything that was cached with the old ones."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not clear its prefix cache, so rollouts would mix two policies")

    def close(self) -> None:
        """Free the engine."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm


def _rollout(index: int, output: Any) -> Rollout:
    ids = tuple(output.token_ids)
    logp_T = tuple(of_token[i].logprob for i, of_token in zip(ids, output.logprobs, strict=True))
    return Rollout(index, ids, output.finish_reason == "stop", logp_T)
