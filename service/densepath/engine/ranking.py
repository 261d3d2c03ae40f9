"""Ranks of scored tokens in the whole vocabulary: what a `View` asks for besides the two log-probabilities.

A table of ranked tokens is float32 [R, 2 + 2 K], because it is part of one tensor with the log-probabilities.
Its columns are the token's own log-probability, its rank, the K most likely ids, and their log-probabilities.
A float32 holds every integer up to 2^24.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from densepath.engine.scorer import Ranked, View

if TYPE_CHECKING:
    import torch

MAX_VOCAB_SIZE = 1 << 24


def table_width(view: View | None) -> int:
    """The number of columns of a table; 0 where nothing is ranked."""
    return 0 if view is None else 2 + 2 * view.top


def rank_tokens(
    logp_sft_R_V: torch.Tensor, logp_reference_R_V: torch.Tensor, target_R: torch.Tensor, view: View
) -> torch.Tensor:
    """The table of R tokens, from each model's log-probabilities over its whole vocabulary, float32 [R, V].

    Only ids that both vocabularies have are ranked, because one may be padded further than the other. The
    rank is defined as in vLLM: the number of tokens that are at least as likely.
    """
    import torch

    shared = slice(min(logp_sft_R_V.shape[1], logp_reference_R_V.shape[1]))
    logp_sft_R_V, logp_reference_R_V = logp_sft_R_V[:, shared], logp_reference_R_V[:, shared]
    if logp_sft_R_V.shape[1] > MAX_VOCAB_SIZE:
        raise ValueError(f"a vocabulary of more than {MAX_VOCAB_SIZE} ids cannot be ranked in float32")
    # A model of weight 0 is left out, because 0 times minus infinity is NaN.
    weighted = [(view.sft, logp_sft_R_V), (view.reference, logp_reference_R_V)]
    parts = [logp_R_V if weight == 1 else weight * logp_R_V for weight, logp_R_V in weighted if weight]
    logp_R_V = reduce(torch.add, parts)
    logp_R_1 = logp_R_V.gather(1, target_R[:, None])
    rank_R_1 = (logp_R_V >= logp_R_1).sum(1, keepdim=True)
    top = logp_R_V.topk(view.top, dim=1)
    return torch.cat([logp_R_1, rank_R_1.float(), top.indices.float(), top.values], 1)


def read_table(table_T: NDArray[np.float32], view: View) -> Ranked:
    """The columns of the table of one sequence."""
    ids, values = slice(2, 2 + view.top), slice(2 + view.top, None)
    return Ranked(
        logp_T=table_T[:, 0].copy(),
        rank_T=table_T[:, 1].astype(np.int64),
        top_ids_T_K=table_T[:, ids].astype(np.int64),
        top_logp_T_K=table_T[:, values].copy(),
    )
