"""The charts of the bias check: does the pair reward length, or positions in a response?"""

from __future__ import annotations

import numpy as np

from densepath.trainer.report.drawing import Chart, axes, colour, lower_axes, plot
from densepath.trainer.report.measures import lengths_and_sums, reward_by_position, spread
from densepath.trainer.report.run import Run, Sample

#: More points would be unreadable and make the page large, so an even selection is drawn.
MOST_POINTS = 2000


def length_bias_chart(run: Run) -> Chart:
    """Sums of rewards against lengths, one point per sampled response."""
    title = "Reward sum against length"
    if not run.samples:
        return Chart("bias_length", title, "The run kept no samples.")
    shown = spread(len(run.samples), MOST_POINTS)
    figure, ax = axes(title, "sum of rewards, nats", xlabel="response tokens")
    drawn: list[Sample] = [run.samples[index] for index in shown]
    for ended, words, marker, hue in ((True, "ended", "o", "blue"), (False, "truncated", "x", "orange")):
        group = [sample for sample in drawn if sample.ended is ended]
        if group:
            length_N, sum_N = lengths_and_sums(group)
            ax.scatter(length_N, sum_N, 14, color=colour(hue), marker=marker, alpha=0.6, label=words, lw=1)
    ax.axhline(0, color=colour("quiet"), linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=2)
    part = (
        ""
        if len(shown) == len(run.samples)
        else f"{len(shown):,} of {len(run.samples):,} responses are drawn. "
    )
    caption = (
        part + "If longer responses get larger sums whatever their content, the points lie along a slope."
    )
    alt = f"Scatter of the sum of rewards against the response's length, {len(shown)} responses."
    return Chart("bias_length", title, caption, alt, figure)


def position_bias_chart(run: Run) -> Chart:
    """Mean token reward at each position, and how many responses are that long."""
    title = "Token reward by position"
    if not any(sample.tokens for sample in run.samples):
        return Chart("bias_position", title, "The run kept no samples.")
    found = reward_by_position(run.samples)
    position_T = np.arange(1, len(found.mean_T) + 1)
    figure, ax = axes(title, "mean reward, nats", xlabel="position in the response, tokens", height=3.4)
    counts = lower_axes(figure, ax, "responses")
    half_T = found.half_interval_T
    ax.fill_between(
        position_T,
        found.mean_T - half_T,
        found.mean_T + half_T,
        color=colour("blue"),
        alpha=0.25,
        linewidth=0,
    )
    plot(ax, position_T, found.mean_T, "blue")
    ax.axhline(0, color=colour("quiet"), linewidth=0.8)
    counts.stairs(
        found.count_T, np.append(position_T - 0.5, position_T[-1] + 0.5), fill=True, color=colour("grey")
    )
    alt = (
        f"Mean token reward at positions 1 to {len(position_T)}: {found.mean_T[0]:.3f} nats at the first, "
        f"over {found.count_T[0]:.0f} responses; {found.mean_T[-1]:.3f} at the last, over "
        f"{found.count_T[-1]:.0f}."
    )
    caption = (
        "Above: the mean over the responses that reach the position, with its 95 % interval. Below: how many "
        "responses reach it."
    )
    return Chart("bias_position", title, caption, alt, figure)
