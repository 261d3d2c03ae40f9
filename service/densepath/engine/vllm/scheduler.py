"""A scheduler that shares a prompt between its rollouts, and still computes every scored row."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats

from densepath.engine.vllm.pooler import scored_spans


class PairScheduler(Scheduler):  # type: ignore[misc]  # vllm is untyped here
    """Limits the prefix-cache hit: it ends before the row that predicts the first scored token.

    The lookup itself is limited. Truncating the result of a full lookup would be wrong without any error for
    sliding windows, because their hits hold null blocks.

    A hybrid can only start from a state that has been kept. So the first rollout of a prompt stops at the
    last block of the prompt that others can share, and its state there is kept.

    Each step is reported, also one after which no sequence is finished. So whoever waits for a long sequence
    can tell an engine that works from one that hangs.
    """

    def _get_local_prefix_cache_hit(self, request: Any) -> tuple[Any, int, int, bool]:
        manager = self.kv_cache_manager
        if not manager.prefix_cache_lookup_enabled(request):
            return manager.empty_kv_cache_blocks, 0, 0, False
        first_scored = scored_spans(request.pooling_params, request.num_tokens)[0]
        blocks, hit, uncached = manager.coordinator.find_longest_cache_hit(
            request.block_hashes, first_scored - 1
        )
        boundary = hit + uncached if uncached else 0
        if self.need_mamba_block_aligned_split:
            boundary = (first_scored - 1) // self.block_size * self.block_size
        return manager.create_kv_cache_blocks(blocks), hit, boundary, False

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, with a report where there is none. vLLM would drop one without statistics."""
        outputs = super().update_from_output(*args, **kwargs)
        if not any(of_client.outputs for of_client in outputs.values()):
            outputs.setdefault(0, EngineCoreOutputs()).scheduler_stats = SchedulerStats()
        return outputs
