"""Hidden states of both models to log-probabilities of the scored tokens, and to their ranks where asked for.

Only the rows that predict a scored token pass through a head: logits of prompt rows are never computed, and
no full `[rows, vocabulary]` table is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate
from vllm.pooling_params import PoolingParams

from densepath.engine.ranking import rank_tokens, table_width
from densepath.engine.scorer import View

TASK = "token_classify"
#: One chunk of fp32 logits: fits the cache of a CPU, and fills a GPU.
LOGIT_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}


def pooling_params(spans: list[int], view: View | None = None) -> PoolingParams:
    """How the scored spans `[start, end, start, end, …]` and the view travel with a request."""
    extra: dict[str, Any] = {"scored_spans": spans}
    if view is not None:
        extra["view"] = [view.sft, view.reference, view.top]
    return PoolingParams(task=TASK, skip_reading_prefix_cache=False, extra_kwargs=extra)


def asked_view(params: PoolingParams) -> View | None:
    """The view of a request."""
    view = (params.extra_kwargs or {}).get("view")
    return None if view is None else View(*view)


def scored_spans(params: PoolingParams, length: int) -> list[int]:
    """The spans of a request; all but the first token where none are given, as in vLLM's dummy run."""
    spans: list[int] = (params.extra_kwargs or {}).get("scored_spans", [1, length])
    return spans


def rows_between(spans: list[int], start: int, end: int) -> list[tuple[int, int]]:
    """The runs of positions in `[start, end)` whose hidden state predicts a scored token."""
    runs = (
        (max(first - 1, start), min(last - 1, end))
        for first, last in zip(spans[::2], spans[1::2], strict=True)
    )
    return [(low, high) for low, high in runs if low < high]


class PairPooler(Pooler):  # type: ignore[misc]  # vllm is untyped here
    """`[rows, hidden_sft + hidden_reference]` to float32 rows for each finished request.

    `[T, 2]`, or `[T, 2 + X]` where a view is asked for: X are the columns of its table (`engine.ranking`).
    """

    def __init__(self, sft: nn.Module, reference: nn.Module, sft_width: int, vocab_size: int) -> None:
        super().__init__()
        self._models = (sft, reference)  # a tuple: they are not this module's children
        self._sft_width = sft_width
        self._vocab_size = vocab_size

    def get_supported_tasks(self) -> set[str]:
        """vLLM's name for one output row a token."""
        return {TASK}

    def get_pooling_updates(self, task: str) -> PoolingParamsUpdate:
        """Ask for the token ids: they are the targets."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor | None]:
        """One entry a request: all its rows when its last chunk has run, None before."""
        cursor = pooling_metadata.get_pooling_cursor()
        scheduled_N = cursor.num_scheduled_tokens_cpu.tolist()
        seen_N = cursor.seq_lens_cpu.tolist()
        length_N = pooling_metadata.prompt_lens.tolist()
        ids_N_L = pooling_metadata.prompt_token_ids_cpu
        rows: list[torch.Tensor] = []
        targets: list[torch.Tensor] = []
        counts_N: list[int] = []
        offset = 0
        for i, (scheduled, seen) in enumerate(zip(scheduled_N, seen_N, strict=True)):
            start = seen - scheduled
            spans = scored_spans(pooling_metadata.pooling_params[i], length_N[i])
            # In vLLM's dummy run the matrix of ids can be narrower than the last row.
            runs = rows_between(spans, start, min(seen, ids_N_L.shape[1] - 1))
            rows += [torch.arange(offset + low - start, offset + high - start) for low, high in runs]
            targets += [ids_N_L[i, low + 1 : high + 1] for low, high in runs]
            counts_N.append(sum(high - low for low, high in runs))
            offset += scheduled
        views_N = [asked_view(params) for params in pooling_metadata.pooling_params]
        logp_chunks = self._logprobs(hidden_states, rows, targets, counts_N, views_N)
        return [
            self._gather(pooling_metadata, i, seen_N[i] - scheduled_N[i], logp_chunk, cursor.finished_mask[i])
            for i, logp_chunk in enumerate(logp_chunks)
        ]

    def _gather(
        self, pooling_metadata: Any, i: int, start: int, logp_chunk: torch.Tensor, finished: bool
    ) -> torch.Tensor | None:
        """Keep a request's chunks until it is finished."""
        kept: list[torch.Tensor] = pooling_metadata.pooling_states[i].hidden_states_cache
        spans = scored_spans(pooling_metadata.pooling_params[i], start)
        before = sum(high - low for low, high in rows_between(spans, 0, start))
        have = sum(map(len, kept))
        if have < before:
            raise RuntimeError(f"densepath: {before - have} scored rows before position {start} never ran")
        if have > before:
            # A preempted request runs again from an earlier position, and vLLM keeps this state across it:
            # what the replay computes anew must not stand twice.
            kept[:] = [torch.cat(kept)[:before]]
        kept.append(logp_chunk)
        if not finished:
            return None
        logp_T_X = torch.cat(kept)
        kept.clear()
        return logp_T_X

    def _logprobs(
        self,
        hidden_states: torch.Tensor,
        rows: list[torch.Tensor],
        targets: list[torch.Tensor],
        counts_N: list[int],
        views_N: list[View | None],
    ) -> list[torch.Tensor]:
        """Each request's rows: log-probabilities of its targets under both models, then its view's table."""
        device, widths_N = hidden_states.device, [2 + table_width(view) for view in views_N]
        if not rows:
            return [torch.empty((0, width), device=device) for width in widths_N]
        row_R = torch.cat(rows).to(device, non_blocking=True)
        target_R = torch.cat(targets).long().to(device, non_blocking=True)
        step = max(32, LOGIT_BYTES.get(device.type, 256 << 20) // (4 * self._vocab_size))
        pieces_N: list[list[torch.Tensor]] = [[] for _ in counts_N]
        for begin, end, requests in _chunks(counts_N, step):
            hidden_C, target_C = hidden_states.index_select(0, row_R[begin:end]), target_R[begin:end]
            ranked = any(views_N[i] is not None for i, _, _ in requests)
            logp_C_2 = torch.empty((end - begin, 2), dtype=torch.float32, device=device)
            tables = [self._one_model(hidden_C, target_C, side, logp_C_2, ranked) for side in (0, 1)]
            for i, low, high in requests:
                piece, view = logp_C_2[low:high], views_N[i]
                if view is not None:
                    sft_V, reference_V = (table[low:high] for table in tables if table is not None)
                    table = rank_tokens(sft_V, reference_V, target_C[low:high], view)
                    piece = torch.cat([piece, table], 1)
                pieces_N[i].append(piece)
        return [
            torch.cat(pieces) if pieces else torch.empty((0, width), device=device)
            for pieces, width in zip(pieces_N, widths_N, strict=True)
        ]

    def _one_model(
        self, hidden_C: torch.Tensor, target_C: torch.Tensor, side: int, logp_C_2: torch.Tensor, ranked: bool
    ) -> torch.Tensor | None:
        """Fill in one model's column; its log-probabilities over the vocabulary where they are ranked."""
        width = slice(self._sft_width, None) if side else slice(None, self._sft_width)
        # vLLM runs the head of a pooling model in fp32, whatever the dtype of its weights.
        logit_C_V = self._models[side].compute_logits(hidden_C[:, width]).float()  # type: ignore[operator]
        normalizer_C = logit_C_V.logsumexp(-1)
        logp_C_2[:, side] = logit_C_V.gather(1, target_C[:, None])[:, 0] - normalizer_C
        return logit_C_V.sub_(normalizer_C[:, None]) if ranked else None


def _chunks(counts_N: list[int], step: int) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Rows in chunks of `step`: begin, end, and whose they are as (request, low, high) within the chunk."""
    ends_N = list(accumulate(counts_N))
    for begin in range(0, ends_N[-1], step):
        end = min(begin + step, ends_N[-1])
        overlaps = [
            (i, max(last - count, begin), min(last, end))
            for i, (count, last) in enumerate(zip(counts_N, ends_N, strict=True))
        ]
        yield begin, end, [(i, low - begin, high - begin) for i, low, high in overlaps if low < high]
