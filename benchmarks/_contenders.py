"""The ways to score sequences under a pair that a benchmark times. Each is a `_side_by_side.Contender`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import _one_thread  # noqa: F401  # before torch
import numpy as np
import torch
from vllm import SamplingParams

from densepath.engine.scorer import Scored
from densepath.sequences import Sequence


class Pair:
    """densepath's engine as it is; or, to show what sharing is worth, reading nothing from the cache."""

    def __init__(self, name: str, engine: Any, *, shares: bool = True) -> None:
        self.name, self._engine, self._shares = name, engine, shares

    def score(self, sequences: list[Sequence]) -> list[Scored]:
        """Cold where nothing is to be shared."""
        scored: list[Scored] = self._engine.score(sequences, cold=not self._shares)
        return scored

    def forget(self) -> None:
        """Empty the prefix cache."""
        empty_cache(self._engine.llm)


class TwoStockEngines:
    """`prompt_logprobs=0` from one engine a model. Stock vLLM reads no prefix cache for such requests."""

    def __init__(
        self, name: str, engines: tuple[Any, ...], *, flat: bool = False, dynamo: bool = True
    ) -> None:
        self.name, self._engines, self._flat, self._dynamo = name, engines, flat, dynamo
        self._params = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, flat_logprobs=flat, detokenize=False
        )

    def score(self, sequences: list[Sequence]) -> list[Scored]:
        """One engine, then the other: on one thread they could not run at once."""
        with nullcontext() if self._dynamo else torch.compiler.set_stance("force_eager"):
            logp_sft_N, logp_reference_N = (self._logprobs(engine, sequences) for engine in self._engines)
        return [
            Scored(sft_T, reference_T, 0)
            for sft_T, reference_T in zip(logp_sft_N, logp_reference_N, strict=True)
        ]

    def _logprobs(self, engine: Any, sequences: list[Sequence]) -> list[Any]:
        prompts = [{"prompt_token_ids": sequence.token_ids_L.tolist()} for sequence in sequences]
        outputs = engine.generate(prompts, self._params, use_tqdm=False)
        pick = self._from_flat if self._flat else self._from_dicts
        return [
            np.array(pick(output.prompt_logprobs, sequence), np.float32)
            for output, sequence in zip(outputs, sequences, strict=True)
        ]

    @staticmethod
    def _from_dicts(logprobs: Any, sequence: Sequence) -> list[float]:
        positions, ids = sequence.positions_T.tolist(), sequence.scored_ids_T.tolist()
        return [logprobs[i][token_id].logprob for i, token_id in zip(positions, ids, strict=True)]

    @staticmethod
    def _from_flat(logprobs: Any, sequence: Sequence) -> list[float]:
        return [logprobs.logprobs[logprobs.start_indices[i]] for i in sequence.positions_T.tolist()]

    def forget(self) -> None:
        """Empty both prefix caches."""
        for engine in self._engines:
            empty_cache(engine)


class Transformers:
    """Both models in transformers, all sequences in one batch of one length, its default attention."""

    def __init__(self, name: str, models: tuple[Any, ...], *, keep_logits_of: int) -> None:
        self.name, self._models, self._keep = name, models, keep_logits_of

    def score(self, sequences: list[Sequence]) -> list[Scored]:
        """The rows that predict scored tokens stand before the last of the rows that are kept."""
        ids_N_L = torch.from_numpy(np.stack([sequence.token_ids_L for sequence in sequences]))
        target_N_T_1 = torch.from_numpy(np.stack([sequence.scored_ids_T for sequence in sequences]))[
            ..., None
        ]
        logp_N_T_by_model = []
        with torch.inference_mode():
            for model in self._models:
                logit_N_R_V = model(ids_N_L, use_cache=False, logits_to_keep=self._keep).logits
                logit_N_T_V = logit_N_R_V[:, -target_N_T_1.shape[1] - 1 : -1]
                logp_N_T_by_model.append(logit_N_T_V.log_softmax(-1).gather(-1, target_N_T_1)[..., 0].numpy())
        return [Scored(sft_T, reference_T, 0) for sft_T, reference_T in zip(*logp_N_T_by_model, strict=True)]

    def forget(self) -> None:
        """It keeps no cache."""


def empty_cache(engine: Any) -> None:
    """Raises RuntimeError where vLLM says that it did not."""
    if not engine.reset_prefix_cache():
        raise RuntimeError("vLLM did not empty its prefix cache: the run would not be cold")
