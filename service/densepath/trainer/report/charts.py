"""The charts over the steps. Each has a caption that explains it and a text for readers who cannot see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from densepath.trainer.report.drawing import MARKED_UP_TO, Chart, axes, colour, lower_axes, plot, window
from densepath.trainer.report.measures import extremes, phase_seconds, time_split
from densepath.trainer.report.run import Float64, Run

PHASE_WORDS = {
    "rollout": ("rollout", "blue"),
    "rewards": ("rewards", "orange"),
    "forward_backward": ("forward-backward", "green"),
    "weight_update": ("weight update", "pink"),
    "held_out": ("held-out check", "quiet"),
    "other": ("other", "grey"),
}
MOST_BARS = 200  # of the time chart


@dataclass(frozen=True)
class _Line:
    name: str
    title: str
    unit: str
    caption: str


_REWARD = _Line(
    "reward",
    "Reward",
    "nats per response",
    "Sum of r_t over a learned response, averaged over responses. It says how far the policy has moved in "
    "the direction that the pair rewards, not whether answers are right: it can rise while accuracy falls.",
)
_KL = _Line(
    "kl",
    "KL to SFT",
    "nats per response",
    "Mean of log π − log p_sft over sampled responses: how far the policy has left the SFT model.",
)
_OBJECTIVE = _Line(
    "objective",
    "Objective: reward − b·KL",
    "nats per response",
    "What the run maximises: the reward minus its KL term.",
)
_ENTROPY = _Line(
    "entropy",
    "Entropy",
    "nats per token",
    "Entropy of the policy, estimated from the sampled tokens. If it falls towards 0, samples become alike.",
)
_GRADIENT = _Line(
    "grad_norm", "Gradient norm", "before clipping", "Norm of the whole gradient, before it is clipped."
)


def step_charts(run: Run) -> Iterator[Chart]:
    """What changed over the steps."""
    yield _line(run, _REWARD)
    yield _held_out(run)
    yield _line(run, _KL)
    yield _line(run, _OBJECTIVE)
    yield _length(run)
    yield _line(run, _ENTROPY)
    yield _line(run, _GRADIENT)


def time_chart(run: Run) -> Chart:
    """Seconds of every step, stacked by phase."""
    title = "Where a step's time goes"
    by_phase = {name: second_S for name, second_S in phase_seconds(run).items() if second_S.any()}
    if not by_phase:
        return Chart("time", title, "The run recorded no times.")
    figure, ax = axes(title, "seconds per step", height=3.0)
    bars = np.array_split(run.step_S, min(len(run.rows), MOST_BARS))
    edges = np.array([*(steps[0] for steps in bars), run.step_S[-1] + 1]) - 0.5
    top = np.zeros(len(bars))
    for name, second_S in by_phase.items():
        label, hue = PHASE_WORDS[name]
        below, top = top, top + [part.mean() for part in np.array_split(second_S, len(bars))]
        ax.stairs(top, edges, baseline=below, fill=True, color=colour(hue), label=label)
    ax.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3)
    means = ", ".join(f"{PHASE_WORDS[phase.name][0]} {phase.seconds:.3g}" for phase in time_split(run))
    alt = f"Stacked seconds of {len(run.rows)} steps, on average: {means}."
    most = -(-len(run.rows) // len(bars))
    caption = (
        "Each step's seconds, stacked."
        if most == 1
        else f"Seconds, stacked. Each bar is the mean of up to {most} steps."
    )
    return Chart("time", title, caption, alt, figure)


def _line(run: Run, line: _Line) -> Chart:
    value_S = run.column(line.name)
    if not np.isfinite(value_S).any():
        return Chart(line.name, line.title, "The run did not record it.")
    figure, ax = axes(line.title, line.unit)
    plot(ax, run.step_S, value_S, "blue")
    caption = line.caption + _mean_words(len(run.rows))
    return Chart(line.name, line.title, caption, _words(run, line.title, value_S, line.unit), figure)


def _held_out(run: Run) -> Chart:
    title = "Held-out accuracy"
    if not run.held_out_kinds:
        return Chart(
            "held_out",
            title,
            "No step has checked held-out prompts, so nothing here says whether answers are right.",
        )
    figure, ax = axes(title, "right answers, %")
    alt = []
    for kind, hue, marker in zip(run.held_out_kinds, ("blue", "orange", "green"), "os^", strict=False):
        value_S = run.column(kind, "held_out") * 100
        plot(ax, run.step_S, value_S, hue, marker=marker, label=kind)
        alt.append(_words(run, f"Held-out accuracy, {kind}", value_S, "%"))
    figure.legend(loc="outside lower center", ncols=3)
    checks = sum(bool(row.get("held_out")) for row in run.rows)
    caption = "Share of held-out prompts answered right, at the steps with a check." + _mean_words(checks)
    return Chart("held_out", title, caption, " ".join(alt), figure)


def _length(run: Run) -> Chart:
    title, length_S = "Response length", run.column("length")
    if not np.isfinite(length_S).any():
        return Chart("length", title, "The run did not record it.")
    figure, ax = axes(title, "mean tokens", height=3.4)
    cut = lower_axes(figure, ax, "truncated, %")
    plot(ax, run.step_S, length_S, "blue")
    with np.errstate(divide="ignore", invalid="ignore"):
        share_S = run.column("truncated") / run.column("responses") * 100
    plot(cut, run.step_S, share_S, "orange")
    cut.set_ylim(-2, max(10.0, float(np.nanmax(share_S, initial=0.0)) * 1.1))
    alt = f"{_words(run, title, length_S, 'tokens')} {_words(run, 'Truncated share', share_S, '%')}"
    caption = "A truncated response was cut at the limit, and is not learned from." + _mean_words(
        len(run.rows)
    )
    return Chart("length", title, caption, alt, figure)


def _mean_words(count: int) -> str:
    return "" if count <= MARKED_UP_TO else f" The strong line is the mean over {window(count)} points."


def _words(run: Run, title: str, value_S: Float64, unit: str) -> str:
    """A line chart in one sentence."""
    found = extremes(run, value_S)
    if found is None:
        return f"{title}: not recorded."
    first, last, highest = found.first, found.last, found.highest
    return (
        f"{title}, {unit}, by step: {first.value:.3g} at step {first.step}, {last.value:.3g} at step "
        f"{last.step}, highest {highest.value:.3g} at step {highest.step}."
    )
