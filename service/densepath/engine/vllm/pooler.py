"""Turns hidden states of both models into log-probabilities of the scored tokens, and ranks if requested.

Only the rows that predict a scored token pass through a head: logits of prompt rows are never computed, and
there is never a full `[rows, vocabulary]` table in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate
from vllm.pooling_params import PoolingParams

from densepath.engine.ranking import rank_tokens, table_width
from densepath.engine.scorer import View

TASK = "token_classify"
#: The size of one chunk of fp32 logits. It fits the cache of a CPU, and it is enough work for a GPU.
LOGIT_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
#: Every tensor of this module names its device: if the engine process is spawned, vLLM imports this module
#: while it builds the model, under `torch.device("cuda")`.
NO_ROWS = torch.empty(0, dtype=torch.int64, device="cpu")


def pooling_params(spans: list[int], view: View | None = None, *, cold: bool = False) -> PoolingParams:
    """How the scored spans `[start, end, start, end, …]` and the view travel with a request.

    A cold request reads nothing from the prefix cache.
    """
    extra: dict[str, Any] = {"scored_spans": spans}
    if view is not None:
        extra["view"] = [view.sft, view.reference, view.top]
    return PoolingParams(task=TASK, skip_reading_prefix_cache=cold, extra_kwargs=extra)


def asked_view(params: PoolingParams) -> View | None:
    """The view of a request."""
    view = (params.extra_kwargs or {}).get("view")
    return None if view is None else View(*view)


def scored_spans(params: PoolingParams, length: int) -> list[int]:
    """The spans of a request. If it has none, as in vLLM's dummy run: all tokens except the first."""
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
    """Turns `[rows, hidden_sft + hidden_reference]` into float32 rows for each finished request.

    They are `[T, 2]`, or `[T, 2 + X]` if the request has a view: X is the width of its table
    (`engine.ranking`).
    """

    def __init__(
        self,
        sft: nn.Module,
        reference: nn.Module,
        dtypes: tuple[torch.dtype, torch.dtype],
        sft_width: int,
        vocab_size: int,
    ) -> None:
        """`dtypes` are those in which the models compute their hidden states."""
        super().__init__()
        self._models = (sft, reference)  # a tuple: they are not this module's children
        self._dtypes = dtypes
        self._sft_width = sft_width
        self._vocab_size = vocab_size

    def get_supported_tasks(self) -> set[str]:
        """vLLM's name for one output row per token."""
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
        rows_N: list[torch.Tensor] = []
        targets_N: list[torch.Tensor] = []
        offset = 0
        for i, (scheduled, seen) in enumerate(zip(scheduled_N, seen_N, strict=True)):
            start = seen - scheduled
            spans = scored_spans(pooling_metadata.pooling_params[i], length_N[i])
            # In vLLM's dummy run the matrix of ids can be narrower than the last row.
            runs = rows_between(spans, start, min(seen, ids_N_L.shape[1] - 1))
            row = [
                torch.arange(offset + low - start, offset + high - start, device="cpu") for low, high in runs
            ]
            rows_N.append(torch.cat([NO_ROWS, *row]))
            targets_N.append(torch.cat([NO_ROWS, *(ids_N_L[i, low + 1 : high + 1] for low, high in runs)]))
            offset += scheduled
        views_N = [asked_view(params) for params in pooling_metadata.pooling_params]
        logp_chunks = self._by_view(hidden_states, rows_N, targets_N, views_N)
        return [
            self._gather(
                pooling_metadata, i, seen_N[i] - scheduled_N[i], logp_chunks[i], cursor.finished_mask[i]
            )
            for i in range(len(scheduled_N))
        ]

    def _by_view(
        self,
        hidden_states: torch.Tensor,
        rows_N: list[torch.Tensor],
        targets_N: list[torch.Tensor],
        views_N: list[View | None],
    ) -> dict[int, torch.Tensor]:
        """Each request's rows. Requests with the same view pass through the heads together."""
        chunks: dict[int, torch.Tensor] = {}
        for view in dict.fromkeys(views_N):
            members = [i for i, each in enumerate(views_N) if each == view]
            row_R, target_R = (torch.cat([each[i] for i in members]) for each in (rows_N, targets_N))
            counts = [len(rows_N[i]) for i in members]
            parts = self._logprobs(hidden_states, row_R, target_R, view).split(counts)  # type: ignore[no-untyped-call]
            chunks |= zip(members, parts, strict=True)
        return chunks

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
            # A preempted request runs again from an earlier position, and vLLM keeps this state meanwhile.
            # Rows that the replay computes again must not be kept twice.
            kept[:] = [torch.cat(kept)[:before]]
        kept.append(logp_chunk)
        if not finished:
            return None
        logp_T_X = torch.cat(kept)
        kept.clear()
        return logp_T_X

    def _logprobs(
        self, hidden_states: torch.Tensor, row_R: torch.Tensor, target_R: torch.Tensor, view: View | None
    ) -> torch.Tensor:
        """Log-probabilities of the targets under both models, then their table: float32 [R, 2 + X]."""
        device = hidden_states.device
        row_R, target_R = row_R.to(device, non_blocking=True), target_R.to(device, non_blocking=True)
        target_R = target_R % self._vocab_size  # the ids of short sequences are raised: `longrope`
        logp_R_X = torch.empty((len(row_R), 2 + table_width(view)), dtype=torch.float32, device=device)
        step = max(32, LOGIT_BYTES.get(device.type, 256 << 20) // (4 * self._vocab_size))
        widths = (slice(None, self._sft_width), slice(self._sft_width, None))
        for begin in range(0, len(row_R), step):
            chunk = slice(begin, begin + step)
            hidden_C = hidden_states.index_select(0, row_R[chunk])
            tables: list[torch.Tensor] = []
            for column, (model, dtype, width) in enumerate(
                zip(self._models, self._dtypes, widths, strict=True)
            ):
                # vLLM runs the head of a pooling model in fp32, whatever dtype its weights have. It must get
                # the hidden states in the model's dtype: it widens the weights if that is not fp32.
                own_C = hidden_C[:, width].to(dtype)
                logit_C_V = model.compute_logits(own_C).float()  # type: ignore[operator]
                normalizer_C = logit_C_V.logsumexp(-1)
                logp_R_X[chunk, column] = logit_C_V.gather(1, target_R[chunk, None])[:, 0] - normalizer_C
                if view is not None:
                    tables.append(logit_C_V - normalizer_C[:, None])
            if view is not None:
                logp_R_X[chunk, 2:] = rank_tokens(tables[0], tables[1], target_R[chunk], view)
        return logp_R_X
