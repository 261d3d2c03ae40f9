"""Rollouts in plain transformers. No engine is started; the vLLM rollouts are compared with these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densepath.trainer.quiet import quiet_libraries
from densepath.trainer.rollouts.decoding import decode
from densepath.trainer.types import Rollout

#: Responses that are decoded together. Finished ones are scored while the next ones are decoded.
BATCH = 64


class TransformersGenerator:
    """A copy of the policy in transformers, fp32."""

    def __init__(self, directory: Path, *, max_new_tokens: int, eos_ids: frozenset[int]) -> None:
        from transformers import AutoModelForCausalLM

        with quiet_libraries():
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, trust_remote_code=False, local_files_only=True
            ).eval()
        if torch.cuda.is_available():
            self._model.cuda()
        self._max_new_tokens, self._eos_ids = max_new_tokens, eos_ids

    def generate(
        self, prompt_ids_N: Sequence[Sequence[int]], seeds_N: Sequence[int] | None
    ) -> Iterator[Rollout]:
        """As `RolloutGenerator.generate`, batch by batch."""
        for start in range(0, len(prompt_ids_N), BATCH):
            batch = slice(start, start + BATCH)
            decoded = decode(
                [(1.0, self._model)],
                prompt_ids_N[batch],
                None if seeds_N is None else seeds_N[batch],
                max_new_tokens=self._max_new_tokens,
                eos_ids=self._eos_ids,
            )
            for one in decoded:
                yield Rollout(start + one.index, one.response_ids, one.ended, one.logp_T)

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy each tensor into the parameter of its name."""
        parameters = dict(self._model.named_parameters())
        for name, tensor in weights:
            parameters[name].copy_(tensor)

    def close(self) -> None:
        """Free the model."""
        del self._model
