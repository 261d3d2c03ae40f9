"""The service's metrics. No label holds text of a client: routes are templates, other labels enumerations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from densepath.errors import BY_CODE
from densepath.verification.verdict import Verdict

TOKEN_EDGES = (-10.0, -5.0, -2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SEQUENCE_EDGES = (-100.0, -50.0, -20.0, -10.0, -5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
SECONDS_EDGES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LENGTH_EDGES = tuple(float(2**power) for power in range(2, 18))  # 4 to 131072 tokens

# Skip the `_created` series that each counter would add.
disable_created_metrics()  # type: ignore[no-untyped-call]


class ArrayHistogram(Collector):
    """A histogram that observes a whole array at once. prometheus_client's takes one value per call.

    Rewards may be negative, so their sum is not a counter. It is left out, as OpenMetrics requires. With
    `kinds` there is one histogram for each value of the label `kind`.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        edges: tuple[float, ...],
        registry: CollectorRegistry,
        kinds: tuple[str, ...] = (),
    ) -> None:
        self._name, self._documentation = name, documentation
        self._edges = np.array(edges)
        self._labels = ["kind"] if kinds else []
        self._counts = {kind: np.zeros(len(edges) + 1, dtype=np.int64) for kind in kinds or ("",)}
        registry.register(self)

    def observe(self, values: NDArray[np.float32 | np.int64], kind: str = "") -> None:
        """Count the finite values of an array of any shape."""
        bucket = np.searchsorted(self._edges, values, side="left")  # a bucket includes its upper edge
        self._counts[kind] += np.bincount(bucket.ravel(), minlength=len(self._edges) + 1)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The method that prometheus_client calls on a collector."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        edges = [*(str(edge) for edge in self._edges), "+Inf"]
        for kind, of_bucket in self._counts.items():
            values = [kind] if kind else []
            counts = of_bucket.cumsum().tolist()
            family.add_metric(values, list(zip(edges, counts, strict=True)), sum_value=None)
            family.add_sample(f"{self._name}_count", dict(zip(self._labels, values, strict=True)), counts[-1])
        yield family


class Metrics:
    """All metrics in their own registry, so that several services can run in one process, as in tests."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "densepath_http_requests",
            "HTTP requests answered",
            ["route", "method", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "densepath_http_request_duration_seconds",
            "Time from the request's headers to the end of its answer",
            ["route"],
            buckets=SECONDS_EDGES,
            registry=registry,
        )
        self.tokens = Counter(
            "densepath_tokens",
            "Tokens of answered items, by kind: prompt (context), cached (the part of the context that came "
            "from the cache), response (scored)",
            ["kind"],
            registry=registry,
        )
        self.sequence_tokens = ArrayHistogram(
            "densepath_sequence_tokens",
            "Tokens of each scored sequence, by kind: prompt (context), response (scored)",
            LENGTH_EDGES,
            registry,
            kinds=("prompt", "response"),
        )
        self.queued_tokens = Gauge(
            "densepath_queued_tokens", "Tokens admitted and not yet answered", registry=registry
        )
        self.max_queued_tokens = Gauge(
            "densepath_max_queued_tokens",
            "Largest number of queued tokens; requests beyond it are refused",
            registry=registry,
        )
        self.running_sequences = Gauge(
            "densepath_running_sequences", "Sequences in the engine", registry=registry
        )
        self.rejections = Counter(
            "densepath_rejections",
            "Requests answered with an error, by its code",
            ["code"],
            registry=registry,
        )
        self.token_reward = ArrayHistogram(
            "densepath_token_reward", "Reward of each scored token, in nats", TOKEN_EDGES, registry
        )
        self.sequence_reward = ArrayHistogram(
            "densepath_sequence_reward",
            "Sum of rewards of each scored sequence, in nats",
            SEQUENCE_EDGES,
            registry,
        )
        self.pair_info = Gauge(
            "densepath_pair_info",
            "The served pair, and whether its engine was compared with transformers; the value is always 1",
            ["model", "version", "verified"],
            registry=registry,
        )
        self.pair_swaps = Counter(
            "densepath_pair_swaps",
            "Swaps of the served pair, by their result: success, refused (the new pair cannot be served), "
            "failed (a fault of the service), cancelled",
            ["result"],
            registry=registry,
        )
        self.score_noise = Gauge(
            "densepath_score_noise",
            "Largest difference, in nats, between the engine's scores of the same sequences: scored alone or "
            "together, with a cold or a warm cache; NaN if it was not measured",
            registry=registry,
        )
        self.score_noise.set(math.nan)
        self.engine_up = Gauge("densepath_engine_up", "1 while the engine can answer", registry=registry)
        self.phase = Gauge(
            "densepath_phase",
            "1 for the phase that the service is in: starting, verifying, ready, degraded (the engine is "
            "being replaced), draining, dead",
            ["phase"],
            registry=registry,
        )
        self.engine_restarts = Counter(
            "densepath_engine_restarts",
            "Engines started because the one before died or hung, by result: ok, failed",
            ["result"],
            registry=registry,
        )
        # Each series starts at 0, so that Prometheus sees its first count as an increase.
        for kind in ("prompt", "cached", "response"):
            self.tokens.labels(kind)
        for result in ("success", "refused", "failed", "cancelled"):
            self.pair_swaps.labels(result)
        for result in ("ok", "failed"):
            self.engine_restarts.labels(result)
        for code in BY_CODE:
            self.rejections.labels(code)

    def show_verdict(self, model: str, version: str, verdict: Verdict) -> None:
        """Record the served pair and the result of its verification, instead of those of before."""
        self.pair_info.clear()
        self.pair_info.labels(model, version, "yes" if verdict.verified else "no").set(1)
        if verdict.noise is not None:
            self.score_noise.set(verdict.noise)

    def count_tokens(
        self, prompt_N: NDArray[np.int64], response_N: NDArray[np.int64], *, cached: int
    ) -> None:
        """Count the context tokens and the scored tokens of each sequence of one answer."""
        for kind, tokens_N in (("prompt", prompt_N), ("response", response_N)):
            self.tokens.labels(kind).inc(int(tokens_N.sum()))
            self.sequence_tokens.observe(tokens_N, kind)
        self.tokens.labels("cached").inc(cached)
