"""Sampling in plain transformers, from one model or from a weighted product of several. Slow, but simple."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from densepath.trainer.types import Rollout


@torch.inference_mode()
def decode(
    weighted_models: Sequence[tuple[float, Any]],
    prompt_ids_N: Sequence[Sequence[int]],
    seeds_N: Sequence[int] | None,
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    vocab_size: int | None = None,
) -> list[Rollout]:
    """Decode one response per prompt from p ∝ prod_m p_m^weight_m, token by token, or greedily.

    `weighted_models` is (1, policy) for the policy itself, and (1 + alpha, sft) and (-alpha, reference) for
    pi_sft (pi_sft / pi_ref)^alpha. If `vocab_size` is given, ids from it on, which are the padded rows of an
    embedding, are never drawn. A seed affects its own response only: its noise does not depend on the batch.
    Log-probabilities are those of the product, in nats.
    """
    device = weighted_models[0][1].device
    width = max(map(len, prompt_ids_N))
    mask_N_L = torch.zeros(len(prompt_ids_N), width + max_new_tokens, dtype=torch.long, device=device)
    input_N_L = torch.zeros(len(prompt_ids_N), width, dtype=torch.long, device=device)
    for n, ids in enumerate(prompt_ids_N):  # padded on the left, so that all responses begin in one column
        input_N_L[n, width - len(ids) :] = torch.tensor(ids, device=device)
        mask_N_L[n, width - len(ids) :] = 1
    position_N_L = (mask_N_L.cumsum(-1) - 1).clamp(min=0)
    generators = None if seeds_N is None else [torch.Generator().manual_seed(seed) for seed in seeds_N]
    caches: list[Any] = [None] * len(weighted_models)
    open_N = torch.ones(len(prompt_ids_N), dtype=torch.bool, device=device)
    drawn_N_T: list[Tensor] = []
    logp_N_T: list[Tensor] = []
    eos = torch.tensor(sorted(eos_ids), device=device)
    for t in range(max_new_tokens):
        first = 0 if t == 0 else width + t - 1
        logit_N_V = 0.0
        for m, (weight, model) in enumerate(weighted_models):
            output = model(
                input_N_L,
                attention_mask=mask_N_L[:, : width + t],
                position_ids=position_N_L[:, first : width + t],
                past_key_values=caches[m],
                use_cache=True,
                logits_to_keep=1,
            )
            caches[m] = output.past_key_values
            logit_N_V = logit_N_V + weight * output.logits[:, -1, :vocab_size].float().log_softmax(-1)
        logp_N_V = torch.as_tensor(logit_N_V).log_softmax(-1)
        drawn_N = _draw(logp_N_V, generators)
        drawn_N_T.append(drawn_N)
        logp_N_T.append(logp_N_V.gather(1, drawn_N[:, None])[:, 0])
        open_N &= ~torch.isin(drawn_N, eos)
        if not open_N.any():
            break
        input_N_L = drawn_N[:, None]
    return _rollouts(torch.stack(drawn_N_T, 1), torch.stack(logp_N_T, 1), eos_ids)


def _draw(logp_N_V: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """The argmax of log p. With generators, Gumbel noise is added first, which makes it a sample from p."""
    if generators is None:
        return logp_N_V.argmax(-1)
    vocab_size = logp_N_V.shape[1]
    noise_N_V = torch.stack([torch.empty(vocab_size).exponential_(generator=g) for g in generators])
    return (logp_N_V - noise_N_V.to(logp_N_V.device).log()).argmax(-1)


def _rollouts(drawn_N_T: Tensor, logp_N_T: Tensor, eos_ids: frozenset[int]) -> list[Rollout]:
    rollouts = []
    for n, (ids, logp_T) in enumerate(zip(drawn_N_T.tolist(), logp_N_T.tolist(), strict=True)):
        ends = [t for t, token in enumerate(ids) if token in eos_ids]
        length = ends[0] + 1 if ends else len(ids)
        rollouts.append(Rollout(n, tuple(ids[:length]), bool(ends), tuple(logp_T[:length])))
    return rollouts
