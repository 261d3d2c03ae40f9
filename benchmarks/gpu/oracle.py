"""transformers on the same device: fp32 without TF32, and its own bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from densepath.sequences import Sequence

Logprobs = list[NDArray[np.float64]]  # [T] for each sequence


def logprobs(directory: Path, sequences: list[Sequence], *, device: str, dtype: str) -> Logprobs:
    """Log-probabilities of the scored tokens, one sequence at a time."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    model = model.to(device).eval()
    with torch.inference_mode():
        return [_logprobs(model, sequence, device) for sequence in sequences]


def _logprobs(model: Any, sequence: Sequence, device: str) -> NDArray[np.float64]:
    token_L, row_T, target_T = (
        torch.from_numpy(ids).to(device)
        for ids in (sequence.token_ids_L, sequence.positions_T - 1, sequence.scored_ids_T)
    )
    logp_T_V = model(token_L[None]).logits[0][row_T].float().log_softmax(-1)
    logp_T: NDArray[np.float64] = logp_T_V.gather(1, target_T[:, None])[:, 0].double().cpu().numpy()
    return logp_T
