"""Times contenders on one workload in one process, in alternating order, and says how far each one is off."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from densepath.engine.scorer import Scored
from densepath.sequences import Sequence


class Contender(Protocol):
    """One way to score sequences under the pair, models loaded."""

    name: str

    def score(self, sequences: list[Sequence]) -> list[Scored]:
        """Both models' log-probabilities of every scored token, in order."""

    def forget(self) -> None:
        """Empty what an earlier run left in a cache."""


@dataclass(frozen=True)
class Measured:
    """The quickest of some cold runs: seconds of CPU and of wall time, each the least of its own; nats."""

    name: str
    cpu_s: float
    wall_s: float
    largest_difference: float


def largest_difference(got: list[Scored], want: list[Scored]) -> float:
    """Over all tokens of all sequences and both models, in nats."""
    return max(
        float(np.abs(a - b).max())
        for g, w in zip(got, want, strict=True)
        for a, b in ((g.logp_sft_T, w.logp_sft_T), (g.logp_reference_T, w.logp_reference_T))
    )


def _one_run(contender: Contender, sequences: list[Sequence]) -> tuple[float, float, list[Scored]]:
    """CPU and wall seconds from token ids to rewards, on an empty cache."""
    contender.forget()
    cpu, wall = time.process_time(), time.perf_counter()
    scored = contender.score(sequences)
    for one in scored:
        np.subtract(one.logp_sft_T, one.logp_reference_T)
    return time.process_time() - cpu, time.perf_counter() - wall, scored


def measure(
    contenders: list[Contender],
    sequences: list[Sequence],
    want: list[Scored],
    *,
    runs: int,
    said: Callable[[str], None],
) -> list[Measured]:
    """Run everyone once to warm up, then `runs` times; every second round goes through them backwards."""
    cpu_s: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    wall_s: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    differences: dict[str, float] = dict.fromkeys(cpu_s, 0.0)
    for turn in range(runs + 1):
        said(f"run {turn} of {runs}" if turn else "warm-up")
        for contender in contenders if turn % 2 else contenders[::-1]:
            cpu, wall, scored = _one_run(contender, sequences)
            off = largest_difference(scored, want)
            differences[contender.name] = max(differences[contender.name], off)
            if turn:
                cpu_s[contender.name].append(cpu)
                wall_s[contender.name].append(wall)
    return [Measured(name, min(cpu_s[name]), min(wall_s[name]), differences[name]) for name in cpu_s]


def as_table(title: str, measured: list[Measured]) -> Table:
    """Ratios are to the first contender's CPU seconds."""
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for heading in ("CPU s", "ratio", "wall s", "largest difference"):
        table.add_column(heading, justify="right")
    for one in measured:
        table.add_row(
            one.name,
            f"{one.cpu_s:.3f}",
            f"{one.cpu_s / measured[0].cpu_s:.2f}×",
            f"{one.wall_s:.3f}",
            f"{one.largest_difference:.1e}",
        )
    return table


def as_records(measured: list[Measured]) -> list[dict[str, Any]]:
    """The same, for a JSON file."""
    return [
        {
            "contender": one.name,
            "cpu_s": round(one.cpu_s, 4),
            "ratio_to_first": round(one.cpu_s / measured[0].cpu_s, 3),
            "wall_s": round(one.wall_s, 4),
            "largest_difference": one.largest_difference,
        }
        for one in measured
    ]
