"""`Service`: what all requests share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from densepath.admission import ByteBudget, TokenBudget, TokenQuotas
from densepath.api.lifecycle import Lifecycle, MakeEngine
from densepath.api.served import Served
from densepath.config import Limits
from densepath.telemetry.metrics import Metrics
from densepath.telemetry.traces import Traces
from densepath.verification.start import Start

SMALL_BODY_THREADS = 4


class Service:
    """The lifecycle, the limits and the token budget, the metrics and the traces. None is ever replaced.

    The pair that is served is not here: a request takes it from the lifecycle, once.
    """

    def __init__(
        self,
        served: Served,
        start_engine: Start,
        *,
        make_engine: MakeEngine | None = None,
        limits: Limits | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.metrics, self.traces = Metrics(), traces or Traces()
        self.budget = TokenBudget(self.limits.max_queued_tokens)
        self.quotas = TokenQuotas(self.limits.key_tokens_per_minute)
        self.bodies = ByteBudget(self.limits.max_body_bytes)
        self.small_bodies = ThreadPoolExecutor(SMALL_BODY_THREADS, "parse")
        self.large_bodies = ThreadPoolExecutor(1, "parse-large")
        self.lifecycle = Lifecycle(
            served,
            start_engine,
            self.metrics,
            make_engine=make_engine,
            hang_seconds=self.limits.hang_seconds,
        )
        self.metrics.queued_tokens.set_function(lambda: self.budget.all_tokens)
        self.metrics.max_queued_tokens.set(self.limits.max_queued_tokens)
