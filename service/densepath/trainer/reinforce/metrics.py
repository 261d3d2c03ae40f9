"""Sending the figures of each step to Prometheus and to the chosen trackers, besides metrics.jsonl.

A row is a line of metrics.jsonl. The run's own files are its record. So if a tracker fails during the run,
this is logged once, the tracker is left out, and the run continues.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    start_http_server,
)

from densepath.errors import InvalidRequestError
from densepath.trainer.reinforce.trackers import open_tracker
from densepath.trainer.run_files import PHASES, Row

#: A key of the row → the name of the gauge after the prefix, and its help text.
GAUGES = {
    "step": ("step", "The last finished step"),
    "reward": ("reward_nats", "Mean sum of rewards per learned response, in nats"),
    "reward_token": ("token_reward_nats", "Mean reward per token, in nats"),
    "kl": (
        "kl_nats",
        "Mean difference per response between the policy's and the SFT model's log-probability, in nats",
    ),
    "objective": ("objective_nats", "Mean reward minus its KL term, per response, in nats"),
    "length": ("response_tokens", "Mean number of tokens per response"),
    "entropy": ("entropy_nats", "Estimated entropy of the policy per token, in nats"),
    "grad_norm": ("gradient_norm", "Norm of the gradient before clipping"),
    "loss": ("loss", "The step's loss"),
    "lr": ("learning_rate", "The step's learning rate"),
    "logp_gap": (
        "logp_gap_nats",
        "Largest difference between the learner's and the sampler's log-probability of a token, in nats",
    ),
}
#: The same for counters. They count from the start of this process.
COUNTERS = {
    "responses": ("responses", "Responses sampled"),
    "truncated": (
        "truncated_responses",
        "Responses that were cut at the token limit, and are therefore not learned from",
    ),
}
_PREFIX = "densepath_trainer_"
_log = logging.getLogger(__name__)

# Skip the `_created` series that each counter would add.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Sink(Protocol):
    """Receives the figures of every step."""

    def step(self, row: Row) -> None:
        """A step has ended with these figures."""

    def waiting(self, away: bool) -> None:
        """The reward service has stopped answering (`away`), or answers again."""

    def close(self) -> None:
        """The run has ended, with or without an error."""


class Sinks:
    """Several sinks as one. They are closed at the end of the `with` block."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def step(self, row: Row) -> None:
        """Give the row to every sink. A sink that fails gets no further rows."""
        for sink in tuple(self._sinks):
            try:
                sink.step(row)
            except Exception:
                _log.warning("%s failed at step %s and gets no more steps", sink, row["step"], exc_info=True)
                self._sinks.remove(sink)
                _close(sink)

    def waiting(self, away: bool) -> None:
        """Tell every sink whether the reward service answers."""
        for sink in self._sinks:
            sink.waiting(away)

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *error: object) -> None:
        while self._sinks:
            _close(self._sinks.pop())


class PrometheusSink:
    """Serves counters and the gauges of the last step on its own port. Port 0 chooses a free one."""

    def __init__(self, port: int) -> None:
        """Raises InvalidRequestError if the port is taken."""
        registry = CollectorRegistry()
        self._gauges = {
            key: Gauge(_PREFIX + name, text, registry=registry) for key, (name, text) in GAUGES.items()
        }
        self._counters = {
            key: Counter(_PREFIX + name, text, registry=registry) for key, (name, text) in COUNTERS.items()
        }
        self._held_out = Gauge(
            _PREFIX + "held_out", "Share of held-out prompts answered right", ["kind"], registry=registry
        )
        self._seconds = Counter(
            _PREFIX + "phase_seconds", "Seconds spent in each part of a step", ["phase"], registry=registry
        )
        self._waiting = Gauge(
            _PREFIX + "waiting", "1 while the reward service does not answer", registry=registry
        )
        for phase in PHASES:
            self._seconds.labels(phase)
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise InvalidRequestError(
                f"--metrics-port {port} cannot be opened ({error.strerror}): give a free port"
            ) from error
        self.port: int = self._server.server_port

    def step(self, row: Row) -> None:
        """Set the gauges to the figures of the row, and add them to the counters."""
        for key, gauge in self._gauges.items():
            if row.get(key) is not None:
                gauge.set(row[key])
        for key, counter in self._counters.items():
            counter.inc(row.get(key) or 0)
        for kind, share in (row.get("held_out") or {}).items():
            self._held_out.labels(kind).set(share)
        for phase in PHASES:
            self._seconds.labels(phase).inc((row.get("seconds") or {}).get(phase, 0.0))

    def waiting(self, away: bool) -> None:
        """Show whether the reward service answers."""
        self._waiting.set(away)

    def close(self) -> None:
        """Stop listening on the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def open_sinks(names: Sequence[str], metrics_port: int | None, run_dir: Path) -> Sinks:
    """The trackers with these names (trackers.TRACKERS), and Prometheus on `metrics_port` if it is above 0.

    Nothing is written into `run_dir` before the first step. Raises InvalidRequestError if a tracker is
    unknown, not installed or cannot start, or the port is taken; trackers that were opened are closed again.
    """
    sinks: list[Sink] = []
    with ExitStack() as opened:
        for name in dict.fromkeys(names):
            sinks.append(open_tracker(name, run_dir))
            opened.callback(_close, sinks[-1])
        if metrics_port:
            sinks.append(PrometheusSink(metrics_port))
        opened.pop_all()
    return Sinks(sinks)


def _close(sink: Sink) -> None:
    try:
        sink.close()
    except Exception:
        _log.warning("%s could not be closed", sink, exc_info=True)
