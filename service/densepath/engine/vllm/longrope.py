"""LongRoPE by the length of each sequence, as in transformers.

Phi-3, 3.5 and 4-mini rotate with short factors if a sequence has at most `original_max_position_embeddings`
tokens, and with long factors otherwise. The length of the whole sequence decides for all of its tokens. vLLM
decides once, from the context length that it serves. Here each request decides: the size of the vocabulary is
added to the ids of a short sequence. So each token carries the decision wherever it runs: in chunks, in
replays after a preemption, in mixed batches, and in the prefix cache. The cache names its blocks by their
ids, so the keys of short and long sequences never mix.

The model subtracts the size of the vocabulary again. It also subtracts the model's limit from the positions
of short sequences: vLLM adds exactly this limit to find a position's row in a table that holds the short
factors first, then the long ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.rotary_embedding.phi3_long_rope_scaled_rope import (
    Phi3LongRoPEScaledRotaryEmbedding,
)
from vllm.transformers_utils.config import get_config

from densepath.sequences import Sequence


def short_limits(config: Any, context_length: int) -> set[int]:
    """The lengths up to which short factors are right, if vLLM would use long factors for all sequences."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    of_layers = parameters.values() if "rope_type" not in parameters else (parameters,)
    limits = {
        int(each["original_max_position_embeddings"])
        for each in of_layers
        if isinstance(each, dict) and each.get("rope_type") == "longrope"
    }
    return {limit for limit in limits if limit < context_length}


@dataclass(frozen=True)
class ShortSequences:
    """Which sequences are short for which model, and how their ids carry this.

    The level of a sequence is the number of limits that it is within. It is 0 if the sequence is long for
    both.
    """

    limits: tuple[int | None, int | None]  # of the sft and of the reference, in tokens; None: no LongRoPE
    vocab_size: int

    @classmethod
    def of(cls, model_config: Any) -> ShortSequences:
        """Read from vLLM's config of a pair. Raises ValueError if a model's layers have different limits."""
        sft_config = model_config.hf_config
        configs = {
            "sft": sft_config,
            "reference": get_config(sft_config.densepath_reference, trust_remote_code=False),
        }
        limits: list[int | None] = []
        for side, config in configs.items():
            found = short_limits(config, model_config.max_model_len)
            if len(found) > 1:
                raise ValueError(
                    f"the {side} has layers with different original_max_position_embeddings: serve it with a "
                    f"context length of at most {min(found)} tokens"
                )
            limits.append(next(iter(found), None))
        return cls((limits[0], limits[1]), sft_config.get_text_config().vocab_size)

    @property
    def levels(self) -> list[int]:
        """The limits, each once, the largest first."""
        return sorted({limit for limit in self.limits if limit is not None}, reverse=True)

    def prompt_ids(self, sequence: Sequence) -> list[int]:
        """The ids that vLLM runs. Tokens after the last scored one change a score only by their number."""
        level = sum(len(sequence.token_ids_L) <= limit for limit in self.levels)
        ids_L = sequence.token_ids_L[: sequence.positions_T[-1] + 1]
        ids: list[int] = (ids_L + level * self.vocab_size).tolist()
        return ids


class LongRope(nn.Module):
    """Lowers ids and positions. Its outputs stay at the same addresses, as CUDA graphs require."""

    ids: torch.Tensor  # int32 [rows]
    lowered: torch.Tensor  # positions for either model, int64 [2, rows]

    def __init__(self, short: ShortSequences, models: tuple[nn.Module, nn.Module], rows: int) -> None:
        """`rows` is the largest number of rows in a step.

        Raises ValueError if vLLM has not built a model as its config says.
        """
        super().__init__()
        self.short = short
        for side, model, limit in zip(("sft", "reference"), models, short.limits, strict=True):
            built = {
                module.original_max_position_embeddings
                for module in model.modules()
                if isinstance(module, Phi3LongRoPEScaledRotaryEmbedding) and module.use_long_rope
            }
            if built != {limit} - {None}:
                raise ValueError(f"vLLM has not built the {side}'s LongRoPE as its config.json says")
        rows = rows if short.levels else 0  # on the device that vLLM builds the model for
        self.register_buffer("ids", torch.zeros(rows, dtype=torch.int32), persistent=False)
        self.register_buffer("lowered", torch.zeros(2, rows, dtype=torch.int64), persistent=False)

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The ids [rows], and the positions [rows] for the sft and for the reference."""
        if not self.short.levels:
            return input_ids, positions, positions
        rows = len(input_ids)
        level_R = input_ids // self.short.vocab_size
        ids_R = self.ids[:rows].copy_(input_ids - level_R * self.short.vocab_size)
        positions_sft_R, positions_reference_R = (
            positions
            if limit is None
            else each[:rows].copy_(positions - limit * (level_R > self.short.levels.index(limit)))
            for each, limit in zip(self.lowered, self.short.limits, strict=True)
        )
        return ids_R, positions_sft_R, positions_reference_R
